"""Chats in the rows of datasets: messages, or a question and its answer, and what is beside them.

A field whose words the model should see is used, or refused by name where it has no place.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from lclm_jax.data.chat.messages import THOUGHTS
from lclm_jax.data.rows.fields import (
    ANSWER,
    CHAT,
    DOCUMENT,
    QUESTION,
    REFUSED,
    SYSTEM,
    TOOLS,
    Raw,
    RowError,
    as_text,
    from_json,
    is_blank,
    list_fields,
    refuse_depth,
    refuse_length,
    refuse_runs,
    refuse_surrogates,
    refuse_tags,
    show,
    strings_in,
)
from lclm_jax.data.rows.messages import read_messages

# Fields with words that must not vanish beside the ones that are used.
WORDS = (*CHAT, *QUESTION, *ANSWER, *SYSTEM, *THOUGHTS, *DOCUMENT, *REFUSED, "history")


def read_conversation(fields: Mapping[str, Any], longest: int) -> Raw:
    """The chat of a row as a raw example. Raises RowError where words would be lost or invented."""
    given = {name: value for name, value in fields.items() if not is_blank(value)}
    if any(given.get(name) is False for name in ("label", "kto_tag")):  # as preferences have it
        raise RowError("fields", "expected an answer to learn, got one with label false")
    messages, used = _turns(given)
    messages = _with_history(messages, given.pop("history", None))
    messages = _with_system(messages, {n: given.pop(n) for n in SYSTEM if n in given})
    messages = _with_context(messages, given.pop("context", None))
    _refuse_unused(given, messages, used)
    raw: Raw = {"messages": messages}
    tools = _tools(given)
    return check_chat(raw | {"tools": tools} if tools else raw, longest)


def check_chat(raw: Raw, longest: int) -> Raw:
    """The example itself, if JSON can hold it and an assistant says what can be trained on."""
    messages = raw["messages"]
    trained = [one.get("trained", True) for one in messages if one["role"] == "assistant"]
    if not trained:
        roles = [message["role"] for message in messages]
        raise RowError("chat", f"expected an assistant who says something, got {roles[:20]}")
    if not any(trained):
        raise RowError("chat", "expected a message to train on, got weight 0 for all")
    refuse_depth(raw)
    try:
        spelled = json.dumps(raw, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RowError(
            "chat", f"expected messages and tools that JSON can hold: {error}"
        ) from error
    refuse_length(len(spelled), longest)
    refuse_surrogates(spelled)
    refuse_tags(spelled)
    refuse_runs(spelled)
    return raw


def _turns(given: Raw) -> tuple[list[Raw], str]:
    """Removes the fields of the turns and returns messages and the fields' names."""
    name = next((name for name in CHAT if name in given), None)
    if name is not None:
        messages = read_messages(given.pop(name), name)
        for other in [one for one in CHAT if one in given]:
            if read_messages(given.pop(other), other) != messages:
                raise RowError("fields", f"expected one chat, got others in {name} and {other}")
        return messages, name
    question = next((name for name in QUESTION if name in given), None)
    answer = next((name for name in ANSWER if name in given), None)
    if question is None or answer is None:
        refused = [name for name in REFUSED if name in given]
        raise RowError(
            "fields",
            f"expected messages in one of {', '.join(CHAT)}, or one of {', '.join(QUESTION)} with "
            f"one of {', '.join(ANSWER)}, got {', '.join(refused) or list_fields(given)}",
        )
    asked = _question(given, question)
    said = given.pop(answer)
    return [*asked, *_answer(given, answer, said)], f"{question} and {answer}"


def _question(given: Raw, name: str) -> list[Raw]:
    asked = given.pop(name)
    if isinstance(asked, list):  # as TRL's conversational prompts
        return read_messages(asked, name)
    texts = [as_text(name, asked)]
    if "input" in given:
        texts.append(as_text("input", given.pop("input")))
    return read_messages([{"role": "user", "content": "\n\n".join(texts)}], name)


def _answer(given: Raw, name: str, said: Any) -> list[Raw]:
    if isinstance(said, list):
        return read_messages(said, name)
    reasoning = {one: given.pop(one) for one in THOUGHTS if one in given}
    return read_messages([{"role": "assistant", "content": as_text(name, said)} | reasoning], name)


def _with_history(messages: list[Raw], history: Any) -> list[Raw]:
    """The turns before: pairs of a question and its answer, or messages."""
    if history is None or _are_in(history, messages):
        return messages
    if isinstance(history, str):
        history = from_json("history", history)
    if not isinstance(history, (list, tuple)):
        raise RowError("fields", f"expected history as a list, got {type(history).__name__}")
    earlier: list[Any] = []
    for turn in history:
        if isinstance(turn, Mapping):
            earlier.append(turn)
            continue
        if not isinstance(turn, (list, tuple)) or len(turn) != 2:
            raise RowError("fields", f"expected history of [question, answer], got {show(turn)}")
        earlier += [
            {"role": role, "content": as_text("history", text)}
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
    start = sum(message["role"] == "system" for message in messages[:1])
    return [*messages[:start], *read_messages(earlier, "history"), *messages[start:]]


def _with_system(messages: list[Raw], fields: Raw) -> list[Raw]:
    texts = {name: as_text(name, text) for name, text in fields.items()}
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


def _with_context(messages: list[Raw], context: Any) -> list[Raw]:
    """The chat with a context to compress before the first words of the user."""
    if context is None or _are_in(context, messages):
        return messages
    texts = context if isinstance(context, (list, tuple)) else [context]
    parts = [{"context": text} for text in (as_text("context", text) for text in texts) if text]
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


def _refuse_unused(given: Raw, messages: list[Raw], used: str):
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


def _are_in(value: Any, messages: Iterable[Raw]) -> bool:
    """Whether a chat says a value's words already."""
    texts, said = _words(value), _words([message["content"] for message in messages])
    return bool(texts) and all(text in "\n".join(said) for text in texts)


def _words(value: Any) -> list[str]:
    return [text.strip() for text in strings_in(value) if text.strip()]


def _tools(given: Raw) -> list[Raw]:
    """Signatures of functions: `tools`, or `functions` as older chats have it; some are JSON."""
    read = {name: _list_of_tools(given[name], name) for name in TOOLS if name in given}
    if "functions" in read:
        read["functions"] = [{"type": "function", "function": one} for one in read["functions"]]
    lists = [tools for tools in read.values() if tools]
    if any(tools != lists[0] for tools in lists):
        raise RowError("fields", "expected one list of tools, got others in tools and functions")
    return lists[0] if lists else []


def _list_of_tools(tools: Any, name: str) -> list[Raw]:
    tools = from_json(name, tools) if isinstance(tools, str) else tools
    if tools is None:
        return []
    if not isinstance(tools, (list, tuple)):
        raise RowError("chat", f"expected {name} as a list, got {type(tools).__name__}")
    signatures = [from_json(name, tool) if isinstance(tool, str) else tool for tool in tools]
    if not all(isinstance(tool, Mapping) for tool in signatures):
        raise RowError("chat", f"expected {name} as a list of objects, got {show(signatures)}")
    return [dict(tool) for tool in signatures]
