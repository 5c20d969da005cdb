"""Chats to tokens: those that transformers' `apply_chat_template` gives, with the role of each.

The template renders the words themselves (see `messages` and `templates`), so it may trim, cut or
compare them. Only its own text can bring in a control token, whatever words, names and tools
spell. `parse_context_tags` makes the parts of a content from text with memory tags.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from lclm_jax.data.chat.assistant_turns import Run, Turn, check_complete, find_turns, list_runs
from lclm_jax.data.chat.messages import (
    Analysis,
    Message,
    Part,
    Words,
    normalise,
    trace_json,
    trace_message,
)
from lclm_jax.data.chat.sourced_str import SourcedStr
from lclm_jax.data.chat.templates import render
from lclm_jax.data.records import Context, Given, Plain, Role, Section, Span
from lclm_jax.data.text.tokenizer import MEMORY_END, MEMORY_SLOT, MEMORY_START, TextError, Tokenizer

Labelled = tuple[
    str, bool, Role | Section | Given
]  # text, may have control tokens, role or filling
__all__ = [
    "CHATML",
    "Analysis",
    "Message",
    "Part",
    "build_chat_record",
    "parse_context_tags",
    "tokenize_normalized_chat",
]

# ChatML; tools are described to the model and called as Qwen's models do it. A line end right after a tag is not rendered.
CHATML = (
    "{% if tools %}<|im_start|>system\n{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}\n\n{% endif %}"
    "Tools you may call, one JSON signature a line:\n<tools>{% for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor %}"
    "{{ '\\n' }}</tools>\n"
    'To call one, write <tool_call>\\n{"name": ..., "arguments": {...}}\\n</tool_call>.<|im_end|>\n{% endif %}'
    "{% for message in messages %}{% if not (tools and loop.first and message['role'] == 'system') %}"
    "{% if message['role'] == 'tool' %}"
    "<|im_start|>user\n<tool_response>\n{{ message['content'] }}\n</tool_response><|im_end|>\n"
    "{% else %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}{% if message['content'] or not loop.first %}{{ '\\n' }}{% endif %}"
    '<tool_call>\n{"name": {{ call.function.name | tojson }}, "arguments": {{ call.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}<|im_end|>\n{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def parse_context_tags(text: str, tokenizer: Tokenizer) -> list[Part]:
    """Text with `<|memory_start|>...<|memory_end|>` around what is to be compressed, as parts.

    Call it on text you wrote; text from elsewhere goes in as a part of its own, where tags are only characters.
    Raises TextError when tags are unbalanced, nested or hold nothing.
    """
    return [
        Context(tokenizer.encode(piece)) if held else piece
        for piece, held in split_context_tags(text)
    ]


def split_context_tags(text: str) -> list[tuple[str, bool]]:
    """The text between memory tags and whether it is to be compressed. Raises what `parse_context_tags` does."""
    found: list[tuple[str, bool]] = []
    held: str | None = None  # text since a start tag
    for piece in re.split(f"({re.escape(MEMORY_START)}|{re.escape(MEMORY_END)})", text):
        if piece == MEMORY_START:
            if held is not None:
                raise TextError(
                    f"memory tags cannot nest: a second {MEMORY_START} before {MEMORY_END} in {text[:80]!r}"
                )
            held = ""
        elif piece == MEMORY_END:
            if held is None:
                raise TextError(
                    f"memory tags must pair up: {MEMORY_END} without {MEMORY_START} in {text[:80]!r}"
                )
            if not held:
                raise TextError(
                    f"expected text between {MEMORY_START} and {MEMORY_END}, got none: leave out the tags"
                )
            found.append((held, True))
            held = None
        elif held is not None:
            held = piece
        elif piece:
            found.append((piece, False))
    if held is not None:
        raise TextError(
            f"memory tags must pair up: {MEMORY_START} without {MEMORY_END} in {text[:80]!r}"
        )
    return found


def build_chat_record(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    generate: bool = False,
    tools: Sequence[Any] = (),
    **settings: Any,
) -> list[Span]:
    """The chat as a record, with loss on what the assistant writes up to the end of its turn.

    With `generate` it ends where the assistant begins. Raises what `tokenize_chat` does.
    """
    spans: list[Span] = []
    for section in tokenize_chat(messages, tokenizer, tools, generate, **settings):
        if isinstance(section, Given):
            spans.append(section)
            continue
        tokens = np.asarray(section.tokens)
        if section.role is Role.CONTEXT:
            spans.append(Context(tokens, section.ratio))
            continue
        trained = _trained(section.role)
        last = spans[-1] if spans else None
        if isinstance(last, Plain) and last.trained == trained:
            spans[-1] = Plain(np.concatenate([last.tokens, tokens]), trained)
        else:
            spans.append(Plain(tokens, trained))
    return spans


def tokenize_chat(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    tools: Sequence[Any] = (),
    generate: bool = False,
    **settings: Any,
) -> list[Section | Given]:
    """`tokenize_normalized_chat` of messages as people and datasets write them: arguments of tool calls may be
    JSON text, and thoughts are kept whether the template reads them or not."""
    normal = normalise(messages, tokenizer, choose_template(tokenizer, tools))
    return tokenize_normalized_chat(normal, tokenizer, tools, generate, **settings)


def tokenize_normalized_chat(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    tools: Sequence[Any] = (),
    generate: bool = False,
    **settings: Any,
) -> list[Section | Given]:
    """The tokens of a chat, in sections of one role.

    They are those of transformers' `apply_chat_template` for the same messages, tools and
    settings, unless words spell a control token: that stays the text it is. A token that the
    template shares with the assistant is the assistant's. What an assistant's message with
    `"trained": False` says carries no loss.

    Raises TextError for a chat that cannot be rendered, and for one that loses a message.
    """
    if not messages:
        raise TextError("expected at least one message, got none")
    template = choose_template(tokenizer, tools)
    fixed = Words(None, Role.FIXED)
    try:
        given = {name: trace_json(value, fixed, name) for name, value in settings.items()}
        given = {**tokenizer.special, **given, "documents": None}
        given["tools"] = trace_json(list(tools), fixed, "tools") or None
        traced = [trace_message(i, x, template, tokenizer) for i, x in enumerate(messages)]
    except RecursionError as error:
        raise TextError("the chat is nested too deep for a template to read") from error

    def prompt(count: int) -> str:
        try:
            return render(template, traced[:count], **given, add_generation_prompt=True)
        except TextError:  # a template may refuse a part of a chat
            return ""

    rendered = render(template, traced, **given, add_generation_prompt=generate)
    runs = list_runs(rendered)
    check_complete(runs, messages, tokenizer)
    turns = find_turns(rendered, runs, messages, tokenizer, template, prompt)
    untrained = {i for i, x in enumerate(messages) if x.get("trained") is False}
    turns = [turn for turn in turns if turn.message not in untrained]
    return _encode(rendered, _assign_roles(runs, turns), tokenizer)


def choose_template(tokenizer: Tokenizer, tools: Sequence[Any] = ()) -> str:
    """The chat template: of named ones that for tools where there are tools; ChatML without one."""
    named = tokenizer.templates.get("tool_use") if tools else None
    return named or tokenizer.template or CHATML


def _assign_roles(runs: Sequence[Run], turns: Sequence[Turn]) -> list[tuple[Run, Role]]:
    """The runs, cut where turns begin and end, each with its role."""
    bounds = sorted({bound for turn in turns for bound in (turn.start, turn.stop)})
    found = []
    number = 0  # of the turn that has not ended yet
    for run in runs:
        cuts = bounds[bisect_right(bounds, run.start) : bisect_left(bounds, run.stop)]
        for start, stop in pairwise([run.start, *cuts, run.stop]):
            while number < len(turns) and turns[number].stop <= start:
                number += 1
            inside = number < len(turns) and turns[number].start <= start
            found.append((replace(run, start=start, stop=stop), _role(run.source, inside)))
    return found


def _role(words: Words | None, inside: bool) -> Role:
    """The role of a run, inside a turn of the assistant or outside."""
    role = Role.FIXED if words is None or words.marker else words.role
    if role is Role.CONTEXT:
        return role
    if inside:
        return Role.ANALYSIS if role is Role.ANALYSIS else Role.ANSWER
    return Role.FIXED if _trained(role) else role


def _trained(role: Role) -> bool:
    return role in (Role.ANSWER, Role.ANALYSIS)


def _encode(
    rendered: SourcedStr, runs: Sequence[tuple[Run, Role]], tokenizer: Tokenizer
) -> list[Section | Given]:
    """Encodes a rendered chat as one text; holes become what they stand for.

    A hole is encoded as a memory slot. A tokenizer without one encodes the text between two holes
    by itself.
    """
    text = "".join([rendered])
    found: list[Section | Given] = []
    section: list[Labelled] = []
    for run, role in runs:
        words = run.source
        if words is None or words.part is None:
            template = words is None or words.marker
            section.append((text[run.start : run.stop], template, role))
        elif MEMORY_SLOT in tokenizer.control:
            section.append((MEMORY_SLOT, True, _fill(words.part, role)))
        else:
            found += _encode_section(section, tokenizer)
            found.append(_fill(words.part, role))
            section = []
    return _join([*found, *_encode_section(section, tokenizer)])


def _fill(part: Any, role: Role) -> Section | Given:
    """Makes the section of a part that is no text."""
    if isinstance(part, Given):
        return part
    if isinstance(part, Context):
        return Section(part.tokens, Role.CONTEXT, part.ratio)
    return Section(part, role)


def _encode_section(section: Sequence[Labelled], tokenizer: Tokenizer) -> Iterator[Section | Given]:
    """Sections of the tokens of texts joined to one, each labelled with its role or filling."""
    if not section:
        return
    tokens, offsets = tokenizer.encode_with_control([(text, marked) for text, marked, _ in section])
    ends = np.cumsum([len(text) for text, _, _ in section])
    most = len(section) - 1
    first = np.minimum(np.searchsorted(ends, offsets[:, 0], "right"), most)
    last = np.maximum(np.searchsorted(ends, offsets[:, 1], "left"), first)
    labels = [label for _, _, label in section]
    trained = np.cumsum([0, *(isinstance(x, Role) and _trained(x) for x in labels)])
    shares = trained[np.minimum(last, most) + 1] > trained[first]  # a token with an answer's text
    found: list[Role | Section | Given] = [
        labels[i] if i == j or labels[i] == labels[j] else Role.ANSWER if shared else Role.FIXED
        for i, j, shared in zip(first, last, shares, strict=True)
    ]
    bounds = [0, *(i for i in range(1, len(found)) if found[i] is not found[i - 1]), len(found)]
    for start, stop in pairwise(bounds):
        label = found[start] if start < stop else None
        if isinstance(label, Role):
            yield Section(tokens[start:stop], label)
        elif label is not None:
            yield label


def _join(sections: Iterable[Section | Given]) -> list[Section | Given]:
    """The same, neighbours of one role made one; a context stays by itself."""
    joined: list[Section | Given] = []
    for section in sections:
        last = joined[-1] if joined else None
        if (
            isinstance(last, Section)
            and isinstance(section, Section)
            and last.role == section.role != Role.CONTEXT
        ):
            joined[-1] = Section(np.concatenate([last.tokens, section.tokens]), last.role)
        elif isinstance(section, Given) or len(section.tokens) or section.role is Role.CONTEXT:
            joined.append(section)
    return joined
