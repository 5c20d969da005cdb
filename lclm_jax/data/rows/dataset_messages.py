"""One message of a chat as datasets spell it, normalised in its names alone.

A normalised message has `role` and `content` (text, None, or parts `{"text": str}` and
`{"context": str, "ratio": int}`); where the row has them `tool_calls` (each `{"type": "function",
"function": {"name", "arguments"}}`, its arguments an object), `tool_call_id`, `name` and
`reasoning_content`; `"trained": False` for an assistant's message that carries no loss; and every
other field, for the template to read.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lclm_jax.data.chat.messages import REASONING_FIELDS, TEMPLATE_ROLES
from lclm_jax.data.rows.cells import JsonObject, decode_text, is_blank, parse_json
from lclm_jax.data.rows.field_names import REFUSED_FIELDS
from lclm_jax.data.rows.row_errors import RowError, abbreviate

ROLE = ("role", "from")
CONTENT = ("content", "value", "text")
SPELLINGS = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "tool_result": "tool",
} | {role: role for role in TEMPLATE_ROLES}
CALLS = ("tool_calls", "function_call")
CALLING_ROLES = ("function_call", "tool_call", "tool_calls")  # their content is the call, as JSON
# Flags of OpenAI, mistral-finetune (weight), axolotl (train, training), ms-swift (loss), verl
# (loss_mask) and others: whether an assistant's message is trained on.
TRAINED = (
    *("trained", "train", "training", "trainable", "train_on_turn"),
    *("weight", "loss", "loss_mask", "loss_weight"),
)
FLAGS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
PART_TYPES = (None, "text", "context", "input_text", "output_text")
MAX_RATIO = 1 << 20  # tokens per latent
# Fields with words for the model that a message cannot hold.
REFUSED_IN_MESSAGE = (*REFUSED_FIELDS, "context", "history", "tools", "functions", "train_detail")


def read_messages(value: Any, name: str) -> list[JsonObject]:
    """The messages in a field of a row: a list, an object of lists, or either as JSON text.

    Raises RowError with reason "chat", "empty", "fields" or "encoding".
    """
    if isinstance(value, str):
        value = parse_json(name, value)
    if isinstance(value, Mapping):
        value = _transpose(value, name)
    if not isinstance(value, (list, tuple)):
        raise RowError("chat", f"expected a list of messages in {name}, got {type(value).__name__}")
    messages = [read_message(message) for message in value]
    # Many datasets give every chat a system message, with nothing in most of them.
    return [message for message in messages if message["role"] != "system" or message["content"]]


def _transpose(columns: Mapping[str, Any], name: str) -> list[JsonObject]:
    """The objects of an object of lists, as `datasets` writes a sequence of objects."""
    lists = {key: value for key, value in columns.items() if value is not None}
    if not all(isinstance(value, (list, tuple)) for value in lists.values()):
        raise RowError("chat", f"expected a list of messages in {name}, got one object")
    if len({len(value) for value in lists.values()}) > 1:
        raise RowError("chat", f"expected lists of one length in {name}, got different ones")
    return [dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)]


def read_message(message: Any) -> JsonObject:
    """A message with its names normalised. Raises RowError as `read_messages` does."""
    if not isinstance(message, Mapping) or not all(isinstance(name, str) for name in message):
        raise RowError(
            "chat", f"expected a message with role and content, got {type(message).__name__}"
        )
    fields = {name: value for name, value in message.items() if value is not None}
    spelled = _take(fields, ROLE)
    role = read_role(spelled)
    read: JsonObject = {"role": role, **_take_content(fields, spelled)}
    reasoning = _take(fields, REASONING_FIELDS)
    if not is_blank(reasoning):
        if role != "assistant":
            raise RowError("chat", f"expected reasoning of an assistant alone, got it of {role}")
        read["reasoning_content"] = decode_text("reasoning_content", reasoning)
    for name in ("name", "tool_call_id"):
        if not is_blank(fields.get(name)):
            read[name] = decode_text(name, fields.pop(name))
    if not _take_trained(fields) and role == "assistant":
        read["trained"] = False
    if role not in ("system", "tool") and not _has_words(read):
        raise RowError("empty", f"expected words in the message of the {role}, got none")
    return read | _others(fields, role)


def _take_content(fields: JsonObject, role: Any) -> JsonObject:
    """Removes what a message says and returns `content`, and `tool_calls` where there are any."""
    content = _content(_take(fields, CONTENT))
    calls = [call for name in CALLS for call in _calls(fields.pop(name, []))]
    if _lower(role) in CALLING_ROLES:
        calls, content = [*calls, *_calls(content or [])], None
    refusal = fields.pop("refusal", None)
    if not is_blank(refusal):  # what the assistant says instead of an answer
        if content:
            raise RowError("chat", "expected content or a refusal, got a message with both")
        content = decode_text("refusal", refusal)
    return {"content": content, "tool_calls": calls} if calls else {"content": content}


def read_role(role: Any) -> str:
    """A role in the spelling of chat templates. Raises RowError for what is not one word."""
    lower = _lower(role)
    known = "assistant" if lower in CALLING_ROLES else SPELLINGS.get(lower, role)
    if not isinstance(known, str) or not known.isidentifier():
        raise RowError("chat", f"expected a role such as user, got {abbreviate(role)}")
    return known


def _lower(role: Any) -> str:
    return role.strip().lower().replace("-", "_").replace(" ", "_") if type(role) is str else ""


def _take(fields: JsonObject, names: Sequence[str]) -> Any:
    """Removes the fields of these names and returns their value. Raises RowError for two values."""
    values = [fields.pop(name) for name in names if name in fields]
    if any(value != values[0] for value in values):
        raise RowError("chat", f"expected one of {', '.join(names)} in a message, got two values")
    return values[0] if values else None


def _has_words(message: JsonObject) -> bool:
    content = message["content"]
    return bool(
        message.get("tool_calls")
        or message.get("reasoning_content", "").strip()
        or (content.strip() if isinstance(content, str) else content)
    )


def _content(content: Any) -> str | list[JsonObject] | None:
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, bytes):
        return decode_text("content", content)
    if not isinstance(content, (list, tuple)):
        raise RowError(
            "chat",
            f"expected a content that is text or a list of parts, got {type(content).__name__}",
        )
    parts = [_part({"text": part} if isinstance(part, str) else part) for part in content]
    return [part for part in parts if part] or None


def _part(part: Any) -> JsonObject:
    """A part of a content; nothing for an empty text."""
    words = ("text", "context")
    fields = (
        {name: value for name, value in part.items() if name in words or not is_blank(value)}
        if isinstance(part, Mapping)
        else {}
    )
    kind = fields.pop("type", None)
    fields.pop("cache_control", None)
    ratio = fields.pop("ratio", None)
    fields = {name: value for name, value in fields.items() if value is not None}
    name = next(iter(fields), None)
    if kind not in PART_TYPES or name not in words or len(fields) > 1:
        raise RowError(
            "chat", f'expected a part {{"text": ...}} or {{"context": ...}}, got {abbreviate(part)}'
        )
    text = decode_text(name, fields[name])
    if name == "text":
        if ratio is not None:
            raise RowError(
                "chat", f"expected a ratio beside a context alone, got {abbreviate(ratio)}"
            )
        return {"text": text} if text else {}
    if not text.strip():
        raise RowError("empty", "expected words in a context, got none")
    return {"context": text} if ratio is None else {"context": text, "ratio": _ratio(ratio)}


def _ratio(ratio: Any) -> int:
    whole = int(ratio) if isinstance(ratio, float) and ratio.is_integer() else ratio
    if type(whole) is not int or not 1 <= whole <= MAX_RATIO:
        raise RowError(
            "chat",
            f"expected a ratio of 1 to {MAX_RATIO} tokens per latent, got {abbreviate(ratio)}",
        )
    return whole


def _calls(calls: Any) -> list[JsonObject]:
    if is_blank(calls):
        return []
    if isinstance(calls, str):
        calls = parse_json("tool_calls", calls)
    if isinstance(calls, Mapping):
        calls = [calls]
    if not isinstance(calls, (list, tuple)):
        raise RowError("chat", f"expected tool_calls as a list, got {type(calls).__name__}")
    return [_call(call) for call in calls if call is not None]


def _call(call: Any) -> JsonObject:
    if isinstance(call, str):
        call = parse_json("tool_calls", call)
    fields = dict(call) if isinstance(call, Mapping) else {}
    function = fields.pop("function", None)
    if function is None:
        function, fields = fields, {name: fields.pop(name, None) for name in ("id", "type")}
    if not isinstance(function, Mapping):
        raise RowError(
            "chat", f"expected a call's function as an object, got {abbreviate(function)}"
        )
    strange = {name for name in fields if not is_blank(fields[name])} - {"id", "type", "index"}
    strange |= {name for name in function if not is_blank(function[name])} - {
        *("name", "arguments", "parameters", "index")
    }
    name = function.get("name")
    if (
        strange
        or not isinstance(name, str)
        or not name
        or fields.get("type") not in (*(None, "", "function"),)
    ):
        raise RowError(
            "chat", f"expected a call of a function with name and arguments, got {abbreviate(call)}"
        )
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        arguments = parse_json("a call's arguments", arguments.strip() or "{}")
    if is_blank(arguments):
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise RowError(
            "chat", f"expected a call's arguments as an object, got {abbreviate(arguments)}"
        )
    identity = (
        {} if is_blank(fields.get("id")) else {"id": decode_text("a call's id", fields["id"])}
    )
    named = {"name": name, "arguments": dict(arguments)}
    return identity | {"type": "function", "function": named}


def _take_trained(fields: JsonObject) -> bool:
    """Removes the flags for training and returns what they say: True where there is none."""
    flags = {name: fields.pop(name) for name in TRAINED if name in fields}
    spelled = (value if isinstance(value, str) else abbreviate(value) for value in flags.values())
    read = {FLAGS.get(text.strip().lower()) for text in spelled}
    if None in read or len(read) > 1:
        raise RowError(
            "chat", f"expected one of 0 and 1 as a message's weight, got {abbreviate(flags)}"
        )
    return read != {False}


def _others(fields: JsonObject, role: str) -> JsonObject:
    """Return the fields that a template may read.

    Raises RowError for words that would not reach the model.
    """
    given = {name: value for name, value in fields.items() if not is_blank(value)}
    refused = [name for name in given if name in REFUSED_IN_MESSAGE]
    if refused:
        raise RowError(
            "chat",
            f"expected text in role and content, got a message of the {role} with "
            f"{', '.join(refused)}, which a chat cannot hold",
        )
    return {name: _as_json(value) for name, value in given.items()}


def _as_json(value: Any) -> Any:
    """The value, or its text where JSON has none: a date, bytes."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return abbreviate(value)
    return value
