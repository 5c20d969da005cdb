"""Messages of a chat as a chat template reads them, in strings that know their source.

A message is `{"role", "content"}`, for an assistant with `"tool_calls"` too, and with whatever
else the template reads. A content is text or a list of parts. A part is text, token ids, a
`Context` to compress, latents computed before as `Given`, or an `Analysis`; as plain data
`{"text"}` or `{"context", "ratio"}`.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from lclm_jax.data.chat.sourced_str import SourcedStr, join
from lclm_jax.data.chat.templates import render
from lclm_jax.data.records import Context, Given, Role
from lclm_jax.data.text.tokenizer import TextError, Tokenizer

REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")  # fields, in transformers' order
MARKERS = (
    ("<think>", "</think>"),
    ("<analysis>", "</analysis>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
)
ROLES = {
    "system",
    "user",
    "assistant",
    "tool",
    "developer",
}  # of templates; their names may be in a control token
HOLE = "\ufffc"  # the character that a template sees of a part that is no text


@dataclass(frozen=True)
class Analysis:
    """What the assistant thinks before it answers, between the markers that stand around it."""

    text: str
    before: str
    after: str


Part = str | np.ndarray | Context | Given | Analysis
Message = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Words:
    """The source of text that does not come from the template."""

    message: int | None  # its number; None for tools and settings
    role: Role
    part: Any = None  # what a hole stands for
    marker: bool = False  # around an analysis: a control token where the tokenizer has one
    spoken: bool = True  # False for names and ids


def normalise(messages: Sequence[Message], tokenizer: Tokenizer, template: str) -> list[Message]:
    """Puts tool calls and thoughts in the form that templates read.

    Arguments of a call become an object where they are JSON text. Thoughts become a field of the
    message where the template reads one, else they stand before the content, between markers.
    Raises TextError for a broken call.
    """
    reads = any(name in template for name in REASONING_FIELDS)
    return [_normalise(message, tokenizer, reads) for message in messages]


def _normalise(message: Message, tokenizer: Tokenizer, reads_thoughts: bool) -> Message:
    if not isinstance(message, Mapping) or message.get("role") != "assistant":
        return message
    normal = dict(message)
    calls, content = message.get("tool_calls"), message.get("content")
    if calls:
        normal["tool_calls"] = [_normalise_call(call) for call in calls]
    thought = next((message[name] for name in REASONING_FIELDS if message.get(name)), None)
    parts = read_parts(content, tokenizer)
    if (
        reads_thoughts
        and not isinstance(content, str)
        and isinstance(next(iter(parts), 0), Analysis)
    ):
        analysis, *parts = parts
        normal[REASONING_FIELDS[0]] = analysis.text.strip("\n")
        normal["content"] = _without_line_ends(parts)
    elif isinstance(thought, str) and not reads_thoughts:
        before, after = MARKERS[0]
        gap = ["\n\n"] if parts else []
        normal["content"] = [Analysis(f"\n{thought}\n", before, after), *gap, *parts]
    return normal


def _normalise_call(call: Any) -> dict[str, Any]:
    called = call.get("function", call) if isinstance(call, Mapping) else {}
    if not (isinstance(called, Mapping) and isinstance(called.get("name"), str)):
        raise TextError(f"a tool call has a name and arguments, got {str(call)[:80]}")
    arguments = called.get("arguments") or {}
    if isinstance(arguments, str):  # as the chat APIs write them
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise TextError(
                f"the arguments of a tool call are a JSON object, got {arguments[:80]!r}: {error}"
            ) from error
    outer = dict(call) if "function" in call else {}
    return {"type": "function", **outer, "function": {**called, "arguments": arguments}}


def _without_line_ends(parts: Sequence[Part]) -> list[Part]:
    """The parts without line ends before the first, if that is text."""
    first, rest = list(parts[:1]), list(parts[1:])
    return [part.lstrip("\n") if isinstance(part, str) else part for part in first] + rest


def trace_message(i: int, message: Message, template: str, tokenizer: Tokenizer) -> dict[str, Any]:
    """Message number i in traced strings. Raises TextError for one that no template could read."""
    if not isinstance(message, Mapping):
        raise TextError(f"expected a message with role and content, got {type(message).__name__}")
    role = message.get("role")
    if not isinstance(role, str) or not re.fullmatch(r"[\w-]+", role):
        raise TextError(
            f"a role is one word such as user, got {role!r}; put what was said into content"
        )
    fields = {name: value for name, value in message.items() if value is not None}
    thought = next((fields[name] for name in REASONING_FIELDS if name in fields), None)
    if thought is not None:
        fields = {"thinking": thought, **fields, "reasoning_content": thought}
    answers = role == "assistant"
    fixed = Words(i, Role.FIXED, spoken=False)
    sources = {name: Words(i, Role.ANALYSIS) for name in REASONING_FIELDS if answers}
    if answers:
        sources["tool_calls"] = Words(i, Role.ANSWER)
    traced = {
        name: trace_json(value, sources.get(name, fixed), name)
        for name, value in fields.items()
        if name not in ("role", "content", "trained")
    }
    traced["role"] = role if role in ROLES else SourcedStr(role, fixed)
    if "content" in fields:
        traced["content"] = _trace_content(i, answers, fields["content"], template, tokenizer)
    return traced


def trace_json(value: Any, source: Words, name: str) -> Any:
    """JSON in traced strings of one source. Raises TextError for a value that is not JSON."""
    if isinstance(value, str):
        return SourcedStr(value, source)
    if isinstance(value, Mapping):
        items = ((str(key), item) for key, item in value.items())
        return {trace_json(k, source, name): trace_json(v, source, name) for k, v in items}
    if isinstance(value, (list, tuple)):
        return [trace_json(item, source, name) for item in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    raise TextError(f"expected {name} to be JSON, got {type(value).__name__}")


def _trace_content(
    i: int, answers: bool, content: Any, template: str, tokenizer: Tokenizer
) -> SourcedStr | list[Any]:
    parts = read_parts(content, tokenizer)
    if answers and isinstance(content, str):
        parts = split_reasoning(content)
    typed = _is_typed(content)
    # Text beside other parts was put into a list to stay plain.
    prompt = Role.PROMPT if isinstance(content, str) or typed else Role.FIXED
    traced = [_trace_part(i, part, Role.ANSWER if answers else prompt) for part in parts]
    if typed and _reads_parts(template):
        return [{"type": "text", "text": text} for text in traced]
    return join(traced)


def _trace_part(i: int, part: Part, role: Role) -> SourcedStr:
    if isinstance(part, str):
        return SourcedStr(part, Words(i, role))
    if isinstance(part, Analysis):
        marker, thought = Words(i, Role.ANSWER, marker=True), Words(i, Role.ANALYSIS)
        text = SourcedStr(part.text, thought)
        return join([SourcedStr(part.before, marker), text, SourcedStr(part.after, marker)])
    return SourcedStr(HOLE, Words(i, Role.CONTEXT if isinstance(part, Context) else role, part))


def read_parts(content: Any, tokenizer: Tokenizer) -> list[Part]:
    """The parts of a content. Raises TextError for one that is neither text nor a list of parts."""
    if content is None:
        return []
    if isinstance(content, (str, np.ndarray, Context, Given, Analysis)):
        content = [content]
    if isinstance(content, (bytes, Mapping)) or not isinstance(content, Iterable):
        raise TextError(
            f"expected a content that is text or a list of parts, got {type(content).__name__}"
        )
    return [_read_part(part, tokenizer) for part in content]


def _read_part(part: Any, tokenizer: Tokenizer) -> Part:
    if isinstance(part, (str, Context, Given, Analysis)):
        return part
    if isinstance(part, (np.ndarray, np.integer)) and np.issubdtype(part.dtype, np.integer):
        return np.atleast_1d(part).astype(np.int32)
    if isinstance(part, Mapping) and part.get("type", "text") == "text":
        texts = {name: part[name] for name in ("text", "context", "analysis") if name in part}
        if len(texts) == 1 and all(isinstance(text, str) for text in texts.values()):
            (name, text), *_ = texts.items()
            if name == "context":
                return Context(tokenizer.encode(text), part.get("ratio"))
            return text if name == "text" else Analysis(text, part["before"], part["after"])
    raise TextError(
        'expected a part that is text, token ids, a context, {"text": ...} or {"context": ...}, '
        f"got {str(part)[:80]}"
    )


def _is_typed(content: Any) -> bool:
    """Whether a content is a list of texts as the chat APIs write them."""
    return isinstance(content, list) and all(
        isinstance(part, Mapping) and part.get("type") == "text" for part in content
    )


@lru_cache(maxsize=64)
def _reads_parts(template: str) -> bool:
    """Whether a template reads a content that is a list of texts."""
    parts = [{"type": "text", "text": "words"}]
    try:
        text = render(template, [{"role": "user", "content": parts}], add_generation_prompt=False)
    except TextError:
        return False
    return "words" in text and "'type'" not in text


def split_reasoning(content: str) -> list[Part]:
    """What the assistant writes; a thought that it begins with is a part of its own."""
    for before, after in MARKERS:
        head, found, rest = content.partition(before)
        thought, closed, tail = rest.partition(after)
        if found and closed and thought.strip() and not head.strip():
            return [part for part in (head, Analysis(thought, before, after), tail) if part]
    return [content]
