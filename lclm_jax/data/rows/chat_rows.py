"""Chats in rows of datasets: messages or a question with its answer, and the fields beside them.

A field with words that the model should see is either used or refused with an error that names it.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from lclm_jax.data.chat.messages import REASONING_FIELDS
from lclm_jax.data.rows.cells import JsonObject, decode_text, is_blank, iterate_strings, parse_json
from lclm_jax.data.rows.checks import (
    check_depth,
    check_length,
    check_memory_tags,
    check_split_points,
    check_surrogates,
)
from lclm_jax.data.rows.dataset_messages import read_flag, read_messages
from lclm_jax.data.rows.field_names import (
    ANSWER_FIELDS,
    CHAT_FIELDS,
    DOCUMENT_FIELDS,
    QUESTION_FIELDS,
    REFUSED_FIELDS,
    SYSTEM_FIELDS,
    TOOL_FIELDS,
)
from lclm_jax.data.rows.row_errors import RowError, abbreviate, describe_fields

# Fields with words, which must not be dropped silently.
FIELDS_WITH_WORDS = (
    *CHAT_FIELDS,
    *QUESTION_FIELDS,
    *ANSWER_FIELDS,
    *SYSTEM_FIELDS,
    *REASONING_FIELDS,
    *DOCUMENT_FIELDS,
    *REFUSED_FIELDS,
    "history",
)


def read_chat_row(fields: Mapping[str, Any], longest: int) -> JsonObject:
    """Return the chat in a row as a raw example of at most `longest` characters.

    Raises RowError where words would be lost or made up.
    """
    given = {name: value for name, value in fields.items() if not is_blank(value)}
    # Preference datasets mark rejected answers with these fields.
    if any(read_flag(given.get(name)) is False for name in ("label", "kto_tag")):
        raise RowError("fields", "expected an answer to learn, got one with label false")

    messages, used = _take_messages(given)
    messages = _with_history(messages, given.pop("history", None))
    system = {name: given.pop(name) for name in SYSTEM_FIELDS if name in given}
    messages = _with_system(messages, system)
    messages = _with_context(messages, given.pop("context", None))
    _refuse_unused(given, messages, used)

    raw: JsonObject = {"messages": messages}
    tools = _read_tools(given)
    return check_chat_example(raw | {"tools": tools} if tools else raw, longest)


def check_chat_example(raw: JsonObject, longest: int) -> JsonObject:
    """Return a chat unchanged, or raise RowError where it cannot be a training example.

    It needs a message of the assistant that is trained on, must fit JSON, and must have at most
    `longest` characters.
    """
    messages = raw["messages"]
    trained = [
        message.get("trained", True) for message in messages if message["role"] == "assistant"
    ]
    if not trained:
        roles = [message["role"] for message in messages]
        raise RowError("chat", f"expected a message of the assistant, got roles {roles[:20]}")
    if not any(trained):
        raise RowError("chat", "expected a message to train on, got weight 0 for all")

    check_depth(raw)
    try:
        text = json.dumps(raw, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RowError(
            "chat", f"expected messages and tools that JSON can hold: {error}"
        ) from error
    check_length(len(text), longest)
    check_surrogates(text)
    check_memory_tags(text)
    check_split_points(text)
    return raw


def _take_messages(given: JsonObject) -> tuple[list[JsonObject], str]:
    """Remove the fields that hold the turns; return the messages and the names of these fields."""
    name = next((name for name in CHAT_FIELDS if name in given), None)
    if name is not None:
        messages = read_messages(given.pop(name), name)
        for other in [field for field in CHAT_FIELDS if field in given]:
            if read_messages(given.pop(other), other) != messages:
                raise RowError("fields", f"expected one chat, got others in {name} and {other}")
        return messages, name

    question = next((name for name in QUESTION_FIELDS if name in given), None)
    answer = next((name for name in ANSWER_FIELDS if name in given), None)
    if question is None or answer is None:
        refused = [name for name in REFUSED_FIELDS if name in given]
        raise RowError(
            "fields",
            f"expected messages in one of {', '.join(CHAT_FIELDS)}, "
            f"or one of {', '.join(QUESTION_FIELDS)} with one of {', '.join(ANSWER_FIELDS)}, "
            f"got {', '.join(refused) or describe_fields(given)}",
        )

    messages = [*_take_question(given, question), *_take_answer(given, answer)]
    return messages, f"{question} and {answer}"


def _take_question(given: JsonObject, name: str) -> list[JsonObject]:
    """Remove the fields of a question and return its messages."""
    question = given.pop(name)
    if isinstance(question, list):  # conversational prompts of TRL
        return read_messages(question, name)
    texts = [decode_text(name, question)]
    if "input" in given:
        texts.append(decode_text("input", given.pop("input")))
    return read_messages([{"role": "user", "content": "\n\n".join(texts)}], name)


def _take_answer(given: JsonObject, name: str) -> list[JsonObject]:
    """Remove the fields of an answer and return its messages."""
    answer = given.pop(name)
    if isinstance(answer, list):
        return read_messages(answer, name)
    reasoning = {field: given.pop(field) for field in REASONING_FIELDS if field in given}
    message = {"role": "assistant", "content": decode_text(name, answer)}
    return read_messages([message | reasoning], name)


def _with_history(messages: list[JsonObject], history: Any) -> list[JsonObject]:
    """Return the chat after its earlier turns: pairs of a question and its answer, or messages."""
    if history is None or _are_in(history, messages):
        return messages
    if isinstance(history, str):
        history = parse_json("history", history)
    if not isinstance(history, (list, tuple)):
        raise RowError("fields", f"expected history as a list, got {type(history).__name__}")

    earlier: list[Any] = []
    for turn in history:
        if isinstance(turn, Mapping):
            earlier.append(turn)
            continue
        if not isinstance(turn, (list, tuple)) or len(turn) != 2:
            raise RowError(
                "fields", f"expected history of [question, answer], got {abbreviate(turn)}"
            )
        earlier += [
            {"role": role, "content": decode_text("history", text)}
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]

    start = sum(message["role"] == "system" for message in messages[:1])
    return [*messages[:start], *read_messages(earlier, "history"), *messages[start:]]


def _with_system(messages: list[JsonObject], fields: JsonObject) -> list[JsonObject]:
    """Return the chat with the system message in `fields`, unless it begins with the same one."""
    texts = {name: decode_text(name, text) for name, text in fields.items()}
    for name, text in texts.items():
        if not text.strip():
            continue
        system = {"role": "system", "content": text}
        if messages and messages[0]["role"] == "system":
            if messages[0]["content"] != text:
                raise RowError("fields", f"expected one system message, got another in {name}")
        else:
            messages = [system, *messages]
    return messages


def _with_context(messages: list[JsonObject], context: Any) -> list[JsonObject]:
    """Return the chat with a context to compress before the first message of the user."""
    if context is None or _are_in(context, messages):
        return messages
    texts = context if isinstance(context, (list, tuple)) else [context]
    parts = [{"context": text} for text in (decode_text("context", text) for text in texts) if text]

    i = next((i for i, message in enumerate(messages) if message["role"] == "user"), None)
    if i is None or any(not part["context"].strip() for part in parts):
        raise RowError(
            "fields", "expected a context with words and a user's message after it, got none"
        )

    content = messages[i]["content"]
    question = [{"text": content}] if isinstance(content, str) else content or []
    if question and "text" in question[0]:
        question = [{"text": f"\n\n{question[0]['text']}"}, *question[1:]]
    message = messages[i] | {"content": [*parts, *question]}
    return [*messages[:i], message, *messages[i + 1 :]]


def _refuse_unused(given: JsonObject, messages: list[JsonObject], used: str):
    """Raise RowError for fields with words that would be dropped."""
    texts = _words([message["content"] for message in messages])
    for name in [name for name in FIELDS_WITH_WORDS if name in given]:
        # Rows of Alpaca and other datasets repeat the whole prompt and answer in `text`.
        is_repetition = name == "text" and all(text in str(given[name]) for text in texts)
        if not is_repetition and not _are_in(given[name], messages):
            raise RowError(
                "fields",
                f"expected {used} alone, got {name} ({type(given[name]).__name__}) beside them; "
                "put its words into the messages, or remove it",
            )


def _are_in(value: Any, messages: Iterable[JsonObject]) -> bool:
    """Return whether a chat already contains the words of a value."""
    texts = _words(value)
    chat = "\n".join(_words([message["content"] for message in messages]))
    return bool(texts) and all(text in chat for text in texts)


def _words(value: Any) -> list[str]:
    """Return the texts in a value that are not blank."""
    return [text.strip() for text in iterate_strings(value) if text.strip()]


def _read_tools(given: JsonObject) -> list[JsonObject]:
    """Return the tools of a chat, from `tools` or from `functions`, the older form."""
    by_field = {name: _list_of_tools(given[name], name) for name in TOOL_FIELDS if name in given}
    if "functions" in by_field:
        by_field["functions"] = [
            {"type": "function", "function": signature} for signature in by_field["functions"]
        ]
    lists = [tools for tools in by_field.values() if tools]
    if any(tools != lists[0] for tools in lists):
        raise RowError("fields", "expected one list of tools, got others in tools and functions")
    return lists[0] if lists else []


def _list_of_tools(tools: Any, name: str) -> list[JsonObject]:
    """Return the objects in the field `name`; the list and each object may be JSON text."""
    tools = parse_json(name, tools) if isinstance(tools, str) else tools
    if tools is None:
        return []
    if not isinstance(tools, (list, tuple)):
        raise RowError("chat", f"expected {name} as a list, got {type(tools).__name__}")
    signatures = [parse_json(name, tool) if isinstance(tool, str) else tool for tool in tools]
    if not all(isinstance(tool, Mapping) for tool in signatures):
        raise RowError(
            "chat", f"expected {name} as a list of objects, got {abbreviate(signatures)}"
        )
    return [dict(tool) for tool in signatures]
