"""Chats in the rows of datasets: messages, or a question and its answer, and what is beside them.

A field whose words the model should see is used, or refused by name where it has no place.
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
from lclm_jax.data.rows.dataset_messages import read_messages
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

# Fields with words that must not vanish beside the ones that are used.
WORDS = (
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
    """The chat of a row as a raw example. Raises RowError where words would be lost or invented."""
    given = {name: value for name, value in fields.items() if not is_blank(value)}
    if any(given.get(name) is False for name in ("label", "kto_tag")):  # as preferences have it
        raise RowError("fields", "expected an answer to learn, got one with label false")
    messages, used = _turns(given)
    messages = _with_history(messages, given.pop("history", None))
    messages = _with_system(messages, {n: given.pop(n) for n in SYSTEM_FIELDS if n in given})
    messages = _with_context(messages, given.pop("context", None))
    _refuse_unused(given, messages, used)
    raw: JsonObject = {"messages": messages}
    tools = _tools(given)
    return check_chat_example(raw | {"tools": tools} if tools else raw, longest)


def check_chat_example(raw: JsonObject, longest: int) -> JsonObject:
    """The example itself, if JSON can hold it and an assistant says what can be trained on."""
    messages = raw["messages"]
    trained = [one.get("trained", True) for one in messages if one["role"] == "assistant"]
    if not trained:
        roles = [message["role"] for message in messages]
        raise RowError("chat", f"expected an assistant who says something, got {roles[:20]}")
    if not any(trained):
        raise RowError("chat", "expected a message to train on, got weight 0 for all")
    check_depth(raw)
    try:
        spelled = json.dumps(raw, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RowError(
            "chat", f"expected messages and tools that JSON can hold: {error}"
        ) from error
    check_length(len(spelled), longest)
    check_surrogates(spelled)
    check_memory_tags(spelled)
    check_split_points(spelled)
    return raw


def _turns(given: JsonObject) -> tuple[list[JsonObject], str]:
    """Removes the fields of the turns and returns messages and the fields' names."""
    name = next((name for name in CHAT_FIELDS if name in given), None)
    if name is not None:
        messages = read_messages(given.pop(name), name)
        for other in [one for one in CHAT_FIELDS if one in given]:
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
    asked = _question(given, question)
    said = given.pop(answer)
    return [*asked, *_answer(given, answer, said)], f"{question} and {answer}"


def _question(given: JsonObject, name: str) -> list[JsonObject]:
    asked = given.pop(name)
    if isinstance(asked, list):  # as TRL's conversational prompts
        return read_messages(asked, name)
    texts = [decode_text(name, asked)]
    if "input" in given:
        texts.append(decode_text("input", given.pop("input")))
    return read_messages([{"role": "user", "content": "\n\n".join(texts)}], name)


def _answer(given: JsonObject, name: str, said: Any) -> list[JsonObject]:
    if isinstance(said, list):
        return read_messages(said, name)
    reasoning = {one: given.pop(one) for one in REASONING_FIELDS if one in given}
    return read_messages(
        [{"role": "assistant", "content": decode_text(name, said)} | reasoning], name
    )


def _with_history(messages: list[JsonObject], history: Any) -> list[JsonObject]:
    """The turns before: pairs of a question and its answer, or messages."""
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
    """The chat with a context to compress before the first words of the user."""
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
    asked = [{"text": content}] if isinstance(content, str) else content or []
    if asked and "text" in asked[0]:
        asked = [{"text": f"\n\n{asked[0]['text']}"}, *asked[1:]]
    return [*messages[:i], messages[i] | {"content": [*parts, *asked]}, *messages[i + 1 :]]


def _refuse_unused(given: JsonObject, messages: list[JsonObject], used: str):
    """Raises RowError for fields with words that would vanish."""
    said = _words([message["content"] for message in messages])
    for name in [name for name in WORDS if name in given]:
        # Alpaca's rows, and others, have the whole prompt and answer once more as text.
        again = name == "text" and all(text in str(given[name]) for text in said)
        if not again and not _are_in(given[name], messages):
            raise RowError(
                "fields",
                f"expected {used} alone, got {name} ({type(given[name]).__name__}) beside them; "
                "put its words into the messages, or remove it",
            )


def _are_in(value: Any, messages: Iterable[JsonObject]) -> bool:
    """Whether a chat says a value's words already."""
    texts, said = _words(value), _words([message["content"] for message in messages])
    return bool(texts) and all(text in "\n".join(said) for text in texts)


def _words(value: Any) -> list[str]:
    return [text.strip() for text in iterate_strings(value) if text.strip()]


def _tools(given: JsonObject) -> list[JsonObject]:
    """Signatures of functions: `tools`, or `functions` as older chats have it; some are JSON."""
    read = {name: _list_of_tools(given[name], name) for name in TOOL_FIELDS if name in given}
    if "functions" in read:
        read["functions"] = [{"type": "function", "function": one} for one in read["functions"]]
    lists = [tools for tools in read.values() if tools]
    if any(tools != lists[0] for tools in lists):
        raise RowError("fields", "expected one list of tools, got others in tools and functions")
    return lists[0] if lists else []


def _list_of_tools(tools: Any, name: str) -> list[JsonObject]:
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
