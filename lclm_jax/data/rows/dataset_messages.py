"""Messages of chats as datasets spell them, read into one form.

A message in this form has `role` and `content`: text, None, or a list of parts `{"text": str}` and
`{"context": str, "ratio": int}`. Where the row has them, it also has

- `tool_calls`, each `{"type": "function", "function": {"name": str, "arguments": dict}}`,
- `tool_call_id`, `name` and `reasoning_content`,
- `"trained": False` for a message of the assistant that carries no loss,
- every other field, for the template to read.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lclm_jax.data.chat.messages import REASONING_FIELDS, TEMPLATE_ROLES
from lclm_jax.data.rows.cells import JsonObject, decode_text, is_blank, parse_json
from lclm_jax.data.rows.field_names import REFUSED_FIELDS
from lclm_jax.data.rows.row_errors import RowError, abbreviate

ROLE_FIELDS = ("role", "from")
CONTENT_FIELDS = ("content", "value", "text")
ROLE_ALIASES = {
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
CALL_FIELDS = ("tool_calls", "function_call")
# Roles of messages whose content is a tool call in JSON.
CALLING_ROLES = ("function_call", "tool_call", "tool_calls")
# Fields that say whether a message of the assistant is trained on, as named by OpenAI and
# mistral-finetune (weight), axolotl (train, training), ms-swift (loss), verl (loss_mask) and more.
TRAINED_FIELDS = (
    *("trained", "train", "training", "trainable", "train_on_turn"),
    *("weight", "loss", "loss_mask", "loss_weight"),
)
FLAG_VALUES = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
PART_TYPES = (None, "text", "context", "input_text", "output_text")
MAX_RATIO = 1 << 20  # tokens per latent
# Fields with words for the model that have no place in a message.
REFUSED_IN_MESSAGE = (*REFUSED_FIELDS, "context", "history", "tools", "functions", "train_detail")


def read_messages(value: Any, name: str) -> list[JsonObject]:
    """Return the messages in the field `name` of a row.

    `value` is a list of messages, an object of lists, or either as JSON text. A system message
    without content is left out.

    Raises RowError with reason "chat", "empty", "fields" or "encoding".
    """
    if isinstance(value, str):
        value = parse_json(name, value)
    if isinstance(value, Mapping):
        value = _transpose(value, name)
    if not isinstance(value, (list, tuple)):
        raise RowError("chat", f"expected a list of messages in {name}, got {type(value).__name__}")
    messages = [read_message(message) for message in value]
    # Many datasets give every chat a system message and leave most of them empty.
    return [message for message in messages if message["role"] != "system" or message["content"]]


def _transpose(columns: Mapping[str, Any], name: str) -> list[JsonObject]:
    """Return the objects in an object of lists, the form in which `datasets` stores them."""
    lists = {key: value for key, value in columns.items() if value is not None}
    if not all(isinstance(value, (list, tuple)) for value in lists.values()):
        raise RowError("chat", f"expected a list of messages in {name}, got one object")
    if len({len(value) for value in lists.values()}) > 1:
        raise RowError("chat", f"expected lists of one length in {name}, got different ones")
    return [dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)]


def read_message(message: Any) -> JsonObject:
    """Return a message in the form that this module describes.

    Raises RowError as `read_messages` does.
    """
    if not isinstance(message, Mapping) or not all(isinstance(name, str) for name in message):
        raise RowError(
            "chat", f"expected a message with role and content, got {type(message).__name__}"
        )
    fields = {name: value for name, value in message.items() if value is not None}

    given_role = _take(fields, ROLE_FIELDS)
    role = read_role(given_role)
    result: JsonObject = {"role": role, **_take_content(fields, given_role)}

    reasoning = _take(fields, REASONING_FIELDS)
    if not is_blank(reasoning):
        if role != "assistant":
            raise RowError("chat", f"expected reasoning of an assistant alone, got it of {role}")
        result["reasoning_content"] = decode_text("reasoning_content", reasoning)

    for name in ("name", "tool_call_id"):
        if not is_blank(fields.get(name)):
            result[name] = decode_text(name, fields.pop(name))
    if not _take_trained(fields) and role == "assistant":
        result["trained"] = False

    if role not in ("system", "tool") and not _has_words(result):
        raise RowError("empty", f"expected words in the message of the {role}, got none")
    return result | _other_fields(fields, role)


def _take_content(fields: JsonObject, role: Any) -> JsonObject:
    """Remove the fields of the content; return `content`, and `tool_calls` where there are any."""
    content = _read_content(_take(fields, CONTENT_FIELDS))
    calls = [call for name in CALL_FIELDS for call in _read_calls(fields.pop(name, []))]
    if _normalize_role(role) in CALLING_ROLES:
        calls, content = [*calls, *_read_calls(content or [])], None

    refusal = fields.pop("refusal", None)
    if not is_blank(refusal):  # stands in place of the content
        if content:
            raise RowError("chat", "expected content or a refusal, got a message with both")
        content = decode_text("refusal", refusal)
    return {"content": content, "tool_calls": calls} if calls else {"content": content}


def read_role(role: Any) -> str:
    """Return a role as chat templates spell it; raises RowError for a role that is not one word."""
    normalized = _normalize_role(role)
    result = "assistant" if normalized in CALLING_ROLES else ROLE_ALIASES.get(normalized, role)
    if not isinstance(result, str) or not result.isidentifier():
        raise RowError("chat", f"expected a role such as user, got {abbreviate(role)}")
    return result


def _normalize_role(role: Any) -> str:
    """Return a role in lower case with underscores, empty for anything but text."""
    return role.strip().lower().replace("-", "_").replace(" ", "_") if type(role) is str else ""


def _take(fields: JsonObject, names: Sequence[str]) -> Any:
    """Remove the fields of these names and return their value.

    Raises RowError for fields with different values.
    """
    values = [fields.pop(name) for name in names if name in fields]
    if any(value != values[0] for value in values):
        raise RowError("chat", f"expected one of {', '.join(names)} in a message, got two values")
    return values[0] if values else None


def _has_words(message: JsonObject) -> bool:
    """Return whether a message has a tool call, reasoning or content."""
    content = message["content"]
    return bool(
        message.get("tool_calls")
        or message.get("reasoning_content", "").strip()
        or (content.strip() if isinstance(content, str) else content)
    )


def _read_content(content: Any) -> str | list[JsonObject] | None:
    """Return a content as text or a list of parts, None where there is none."""
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, bytes):
        return decode_text("content", content)
    if not isinstance(content, (list, tuple)):
        raise RowError(
            "chat",
            f"expected a content that is text or a list of parts, got {type(content).__name__}",
        )
    parts = [_read_part({"text": part} if isinstance(part, str) else part) for part in content]
    return [part for part in parts if part] or None


def _read_part(part: Any) -> JsonObject:
    """Return a part of a content, {} for an empty text."""
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
    return {"context": text} if ratio is None else {"context": text, "ratio": _read_ratio(ratio)}


def _read_ratio(ratio: Any) -> int:
    """Return a ratio in tokens per latent as an integer."""
    whole = int(ratio) if isinstance(ratio, float) and ratio.is_integer() else ratio
    if type(whole) is not int or not 1 <= whole <= MAX_RATIO:
        raise RowError(
            "chat",
            f"expected a ratio of 1 to {MAX_RATIO} tokens per latent, got {abbreviate(ratio)}",
        )
    return whole


def _read_calls(calls: Any) -> list[JsonObject]:
    """Return tool calls, given as a list, a single call, or either as JSON text."""
    if is_blank(calls):
        return []
    if isinstance(calls, str):
        calls = parse_json("tool_calls", calls)
    if isinstance(calls, Mapping):
        calls = [calls]
    if not isinstance(calls, (list, tuple)):
        raise RowError("chat", f"expected tool_calls as a list, got {type(calls).__name__}")
    return [_read_call(call) for call in calls if call is not None]


def _read_call(call: Any) -> JsonObject:
    """Return a tool call with an object of arguments.

    The name and arguments may be inside `function` or at the top level.
    """
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

    outer_names = {name for name in fields if not is_blank(fields[name])}
    inner_names = {name for name in function if not is_blank(function[name])}
    unknown = outer_names - {"id", "type", "index"}
    unknown |= inner_names - {"name", "arguments", "parameters", "index"}
    name = function.get("name")
    has_name = isinstance(name, str) and name
    if unknown or not has_name or fields.get("type") not in (None, "", "function"):
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

    result: JsonObject = {}
    if not is_blank(fields.get("id")):
        result["id"] = decode_text("a call's id", fields["id"])
    signature = {"name": name, "arguments": dict(arguments)}
    return result | {"type": "function", "function": signature}


def _take_trained(fields: JsonObject) -> bool:
    """Remove the training flags; return whether the message is trained on, True without flags."""
    flags = {name: fields.pop(name) for name in TRAINED_FIELDS if name in fields}
    values = {read_flag(value) for value in flags.values()}
    if None in values or len(values) > 1:
        raise RowError(
            "chat", f"expected one of 0 and 1 as a message's weight, got {abbreviate(flags)}"
        )
    return values != {False}


def read_flag(value: Any) -> bool | None:
    """Return True or False in any of their spellings; None for anything else."""
    text = value if isinstance(value, str) else abbreviate(value)
    return FLAG_VALUES.get(text.strip().lower())


def _other_fields(fields: JsonObject, role: str) -> JsonObject:
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
    """Return the value, or its text where JSON cannot hold it, as for a date or bytes."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return abbreviate(value)
    return value
