"""Messages of a chat, prepared for a template in strings that know their source.

A message is `{"role", "content"}`, with `"tool_calls"` for an assistant and any other field that
the template reads. A content is text or a list of parts. A part is text, token ids, a `Context`
to compress, a `Given` for latents computed before, or a `Reasoning`; as plain data it is
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
from lclm_jax.data.chat.templates import render_template
from lclm_jax.data.records import Context, Given, Role
from lclm_jax.data.text.tokenizer import TextError, Tokenizer

# Fields with the assistant's reasoning, in the order in which transformers reads them.
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
REASONING_MARKERS = (
    ("<think>", "</think>"),
    ("<analysis>", "</analysis>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
)
# A template may build a control token from the name of one of these roles.
TEMPLATE_ROLES = {"system", "user", "assistant", "tool", "developer"}
PLACEHOLDER = "\ufffc"  # the character that a template sees for a part that is not text


@dataclass(frozen=True)
class Reasoning:
    """The reasoning of an assistant before its answer, with the markers around it."""

    text: str
    before: str
    after: str


Part = str | np.ndarray | Context | Given | Reasoning
Message = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class TextSource:
    """The source of text that does not come from the template.

    `message` is the number of a message, None for tools and settings. `part` is what a
    placeholder stands for. `is_marker` is set for the markers around reasoning, which become a
    control token where the tokenizer has one. `is_content` is unset for names and ids.
    """

    message: int | None
    role: Role
    part: Any = None
    is_marker: bool = False
    is_content: bool = True


def prepare_messages(
    messages: Sequence[Message], tokenizer: Tokenizer, template: str
) -> list[Message]:
    """Return messages with tool calls and reasoning in the form that templates read.

    Arguments of a call that are JSON text become an object. Reasoning becomes a field of the
    message if the template reads one, else text before the content, between markers. Raises
    TextError for a call without a name, or with arguments that are not JSON.
    """
    reads = reads_reasoning(tokenizer, template)
    return [_prepare_message(message, tokenizer, reads) for message in messages]


@lru_cache(maxsize=64)
def reads_reasoning(tokenizer: Tokenizer, template: str) -> bool:
    """Return whether a template renders a field with reasoning; many only mention the word."""
    if not any(name in template for name in REASONING_FIELDS):
        return False
    probe = "words of a thought"
    answer = {"role": "assistant", "content": "Hi", **dict.fromkeys(REASONING_FIELDS, probe)}
    chat = [{"role": "user", "content": "Hello"}, answer]
    try:
        return probe in render_template(
            template, chat, **tokenizer.special, add_generation_prompt=False
        )
    except TextError:  # it wants another chat
        return True


def _prepare_message(message: Message, tokenizer: Tokenizer, reads_reasoning: bool) -> Message:
    if not isinstance(message, Mapping) or message.get("role") != "assistant":
        return message
    prepared = dict(message)
    calls, content = message.get("tool_calls"), message.get("content")
    if calls:
        prepared["tool_calls"] = [_prepare_call(call) for call in calls]

    reasoning = next((message[name] for name in REASONING_FIELDS if message.get(name)), None)
    parts = parse_parts(content, tokenizer)
    first = parts[0] if parts and not isinstance(content, str) else None
    if reads_reasoning and isinstance(first, Reasoning):
        prepared[REASONING_FIELDS[0]] = first.text.strip("\n")
        prepared["content"] = _without_line_ends(parts[1:])
    elif isinstance(reasoning, str) and not reads_reasoning:
        before, after = REASONING_MARKERS[0]
        gap = ["\n\n"] if parts else []
        prepared["content"] = [Reasoning(f"\n{reasoning}\n", before, after), *gap, *parts]
    return prepared


def _prepare_call(call: Any) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else {}
    if not (isinstance(function, Mapping) and isinstance(function.get("name"), str)):
        raise TextError(f"a tool call has a name and arguments, got {str(call)[:80]}")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):  # as the chat APIs write them
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise TextError(
                f"the arguments of a tool call are a JSON object, got {arguments[:80]!r}: {error}"
            ) from error
    outer = dict(call) if "function" in call else {}
    return {"type": "function", **outer, "function": {**function, "arguments": arguments}}


def _without_line_ends(parts: Sequence[Part]) -> list[Part]:
    """Remove line ends from the beginning of the first part, if it is text."""
    first, rest = list(parts[:1]), list(parts[1:])
    return [part.lstrip("\n") if isinstance(part, str) else part for part in first] + rest


def attach_sources(i: int, message: Message, template: str, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return message number `i` in strings that know their source.

    Raises TextError for a message that no template could read.
    """
    if not isinstance(message, Mapping):
        raise TextError(f"expected a message with role and content, got {type(message).__name__}")
    role = message.get("role")
    if not isinstance(role, str) or not re.fullmatch(r"[\w-]+", role):
        raise TextError(
            f"a role is one word such as user, got {role!r}; put the words into content"
        )
    fields = {name: value for name, value in message.items() if value is not None}
    reasoning = next((fields[name] for name in REASONING_FIELDS if name in fields), None)
    if reasoning is not None:
        fields = {"thinking": reasoning, **fields, "reasoning_content": reasoning}

    is_answer = role == "assistant"
    fixed = TextSource(i, Role.FIXED, is_content=False)
    sources = {name: TextSource(i, Role.ANALYSIS) for name in REASONING_FIELDS if is_answer}
    if is_answer:
        sources["tool_calls"] = TextSource(i, Role.ANSWER)
    sourced = {
        name: attach_json_sources(value, sources.get(name, fixed), name)
        for name, value in fields.items()
        if name not in ("role", "content", "trained")
    }
    sourced["role"] = role if role in TEMPLATE_ROLES else SourcedStr(role, fixed)
    if "content" in fields:
        sourced["content"] = _attach_content_sources(
            i, is_answer, fields["content"], template, tokenizer
        )
    return sourced


def attach_json_sources(value: Any, source: TextSource, name: str) -> Any:
    """Return JSON in strings of one source; raises TextError for a value that is not JSON."""
    if isinstance(value, str):
        return SourcedStr(value, source)
    if isinstance(value, Mapping):
        items = ((str(key), item) for key, item in value.items())
        return {
            attach_json_sources(k, source, name): attach_json_sources(v, source, name)
            for k, v in items
        }
    if isinstance(value, (list, tuple)):
        return [attach_json_sources(item, source, name) for item in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    raise TextError(f"expected {name} to be JSON, got {type(value).__name__}")


def _attach_content_sources(
    i: int, is_answer: bool, content: Any, template: str, tokenizer: Tokenizer
) -> SourcedStr | list[Any]:
    parts = parse_parts(content, tokenizer)
    if is_answer and isinstance(content, str):
        parts = split_reasoning(content)
    is_typed = _is_typed(content)
    # Text next to other parts was put into a list so that it is never compressed.
    prompt = Role.PROMPT if isinstance(content, str) or is_typed else Role.FIXED
    role = Role.ANSWER if is_answer else prompt
    texts = [_attach_part_source(i, part, role) for part in parts]
    if is_typed and _reads_parts(template):
        return [{"type": "text", "text": text} for text in texts]
    return join(texts)


def _attach_part_source(i: int, part: Part, role: Role) -> SourcedStr:
    if isinstance(part, str):
        return SourcedStr(part, TextSource(i, role))
    if isinstance(part, Reasoning):
        marker = TextSource(i, Role.ANSWER, is_marker=True)
        text = SourcedStr(part.text, TextSource(i, Role.ANALYSIS))
        return join([SourcedStr(part.before, marker), text, SourcedStr(part.after, marker)])
    role = Role.CONTEXT if isinstance(part, Context) else role
    return SourcedStr(PLACEHOLDER, TextSource(i, role, part))


def parse_parts(content: Any, tokenizer: Tokenizer) -> list[Part]:
    """Return the parts of a content.

    Raises TextError for a content that is neither text nor a list of parts.
    """
    if content is None:
        return []
    if isinstance(content, (str, np.ndarray, Context, Given, Reasoning)):
        content = [content]
    if isinstance(content, (bytes, Mapping)) or not isinstance(content, Iterable):
        raise TextError(
            f"expected a content that is text or a list of parts, got {type(content).__name__}"
        )
    return [_parse_part(part, tokenizer) for part in content]


def _parse_part(part: Any, tokenizer: Tokenizer) -> Part:
    if isinstance(part, (str, Context, Given, Reasoning)):
        return part
    if isinstance(part, (np.ndarray, np.integer)) and np.issubdtype(part.dtype, np.integer):
        return np.atleast_1d(part).astype(np.int32)
    if isinstance(part, Mapping) and part.get("type", "text") == "text":
        texts = {name: part[name] for name in ("text", "context", "analysis") if name in part}
        if len(texts) == 1 and all(isinstance(text, str) for text in texts.values()):
            (name, text), *_ = texts.items()
            if name == "context":
                return Context(tokenizer.encode(text), part.get("ratio"))
            return text if name == "text" else Reasoning(text, part["before"], part["after"])
    raise TextError(
        'expected a part that is text, token ids, a context, {"text": ...} or {"context": ...}, '
        f"got {str(part)[:80]}"
    )


def _is_typed(content: Any) -> bool:
    """Return whether a content is a list of typed texts, as chat APIs write them."""
    return isinstance(content, list) and all(
        isinstance(part, Mapping) and part.get("type") == "text" for part in content
    )


@lru_cache(maxsize=64)
def _reads_parts(template: str) -> bool:
    """Return whether a template reads a content that is a list of typed texts."""
    parts = [{"type": "text", "text": "words"}]
    try:
        text = render_template(
            template, [{"role": "user", "content": parts}], add_generation_prompt=False
        )
    except TextError:
        return False
    return "words" in text and "'type'" not in text


def split_reasoning(content: str) -> list[Part]:
    """Split an answer that begins with reasoning between markers into parts.

    >>> split_reasoning("<think>Hm.</think>Yes.")
    [Reasoning(text='Hm.', before='<think>', after='</think>'), 'Yes.']
    """
    for before, after in REASONING_MARKERS:
        head, opened, rest = content.partition(before)
        reasoning, closed, tail = rest.partition(after)
        if opened and closed and reasoning.strip() and not head.strip():
            return [part for part in (head, Reasoning(reasoning, before, after), tail) if part]
    return [content]
