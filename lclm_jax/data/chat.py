"""Chats to tokens: the tokenizer's own chat template decides the form, what people and tools say stays data.

A message is `{"role", "content"}`, for an assistant with `"tool_calls"` too; a content is text, or a list of parts. A part
is text (str or token ids), a `Context` to compress, latents given as `Given`, or `Analysis`. `parse_memory` makes such a list
from text with memory tags.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from lclm_jax.data.spans import Context, Given, Plain, Span
from lclm_jax.data.stretches import Role, Stretch
from lclm_jax.data.tokens import MEMORY_END, MEMORY_START, TextError, Tokenizer


@dataclass(frozen=True)
class Analysis:
    """What the assistant thinks before it answers, between the markers that stand around it."""

    text: str
    before: str
    after: str


Part = str | np.ndarray | Context | Given | Analysis
Message = dict[str, Any]
Piece = tuple[str | int | np.ndarray | Context | Given, Role]  # text, control token, tokens, ...

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
REASONING = "reasoning_content"  # the field of a message that templates of thinking models read
_HOLE = "\ue000{}\ue001"  # private-use characters mark where somebody's words go in the rendered template
_HOLES = re.compile("\ue000([0-9]+)\ue001")


def parse_memory(text: str, tokenizer: Tokenizer) -> list[Part]:
    """Text with `<|memory_start|>...<|memory_end|>` around what is to be compressed, as parts.

    Call it on text you wrote; text from elsewhere goes in as a part of its own, where tags are only characters.
    Raises TextError when tags are unbalanced, nested or hold nothing.
    """
    return [
        Context(tokenizer.encode(piece)) if held else piece for piece, held in split_memory(text)
    ]


def split_memory(text: str) -> list[tuple[str, bool]]:
    """The text between memory tags and whether it is to be compressed. Raises what `parse_memory` does."""
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


def render_chat(
    messages: Sequence[Message], tokenizer: Tokenizer, generate: bool = False
) -> list[Span]:
    """The chat as a record, loss on what the assistant says and on the token that ends its turn.

    With `generate`, ends where the assistant begins. What `read_chat` says holds here too.
    """
    spans: list[Span] = []
    for stretch in read_chat(messages, tokenizer, generate=generate):
        if isinstance(stretch, Given):
            spans.append(stretch)
            continue
        tokens = np.asarray(stretch.tokens)
        if stretch.role is Role.CONTEXT:
            spans.append(Context(tokens, stretch.ratio))
            continue
        trained = _trained(stretch.role)
        last = spans[-1] if spans else None
        if isinstance(last, Plain) and last.trained == trained:
            spans[-1] = Plain(np.concatenate([last.tokens, tokens]), trained)
        else:
            spans.append(Plain(tokens, trained))
    return spans


def read_chat(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    tools: Sequence[Any] = (),
    generate: bool = False,
) -> list[Stretch | Given]:
    """The tokens of a chat in stretches: whose words they are.

    Words are joined to the template's own text before encoding and found again by their offsets, so that tokens come out as
    they would from the rendered string; a token that holds characters of both is the template's. What the assistant writes
    is encoded from where its turn begins, so that what stands before is always what it is prompted with. Only the template
    can bring in a control token, whatever words, tool calls and tools spell.

    Raises TextError for a chat that cannot be rendered.
    """
    if not messages:
        raise TextError("expected at least one message, got none")
    words: list[
        tuple[int | None, Any, bool]
    ] = []  # of each hole: its message (None: the tools'), words, whether inside JSON
    template = tokenizer.template or CHATML
    skeleton = [
        _hollow_message(i, message, words, REASONING in template)
        for i, message in enumerate(messages)
    ]
    hollow_tools = [_hollow(None, tool, words) for tool in tools]
    rendered, prompt = _render_template(template, json.dumps([skeleton, hollow_tools]), generate)
    return _encode(_pieces(rendered, prompt, words, messages, tokenizer), tokenizer)


def as_parts(content: str | Iterable[Part]) -> list[Part]:
    return [content] if isinstance(content, str) else list(content)


def _hollow_message(i: int, message: Message, words: list, reasoning: bool) -> Message:
    """The message with holes for what it says; with `reasoning`, the template places an analysis and its markers."""
    role = message.get("role")
    if not isinstance(role, str) or not role.isidentifier():
        raise TextError(
            f"a role is one word such as user, got {role!r}; put what was said into content"
        )
    content, calls = message.get("content"), message.get("tool_calls") or ()
    hollow: Message = {"role": role, "content": ""}
    if reasoning and isinstance(content, list) and content and isinstance(content[0], Analysis):
        thought, *content = content
        words.append((i, [Analysis(thought.text.strip("\n"), "", "")], False))
        hollow[REASONING] = _HOLE.format(len(words) - 1)
        if content and isinstance(content[0], str):
            content = [content[0].lstrip("\n"), *content[1:]]
    if content or not calls:
        words.append((i, "" if content is None else content, False))
        hollow["content"] = _HOLE.format(len(words) - 1)
    if calls:
        hollow["tool_calls"] = [
            {"type": "function", "function": _hollow_call(i, call, words)} for call in calls
        ]
    return hollow


def _hollow_call(i: int, call: dict[str, Any], words: list) -> dict[str, Any]:
    called = call.get("function", call) if isinstance(call, dict) else {}
    if not isinstance(called.get("name"), str):
        raise TextError(f"a tool call has a name and arguments, got {str(call)[:80]}")
    arguments = called.get("arguments") or {}
    if isinstance(arguments, str):  # as the chat APIs write them
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError as error:
            raise TextError(
                f"the arguments of a tool call are a JSON object, got {arguments[:80]!r}: {error}"
            ) from error
    words.append((i, called["name"], True))
    return {"name": _HOLE.format(len(words) - 1), "arguments": _hollow(i, arguments, words)}


def _hollow(i: int | None, value: Any, words: list) -> Any:
    """JSON with holes for every string but single words, which cannot spell a control token and which templates compare."""
    if isinstance(value, dict):
        return {_hollow(i, str(key), words): _hollow(i, held, words) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [_hollow(i, held, words) for held in value]
    if not isinstance(value, str) or value.isidentifier():
        return value
    words.append((i, value, True))
    return _HOLE.format(len(words) - 1)


@lru_cache(maxsize=4096)
def _render_template(template: str, skeleton: str, generate: bool) -> tuple[str, str]:
    """The rendered chat, and what the template writes where the assistant begins."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    messages, tools = json.loads(skeleton)

    def render(generate: bool) -> str:
        settings = {
            "chat_template": template,
            "tools": tools or None,
            "add_generation_prompt": generate,
        }
        return render_jinja_template([messages], **settings)[0][0]

    try:
        whole, begun = render(False), render(True)
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise TextError(f"the chat template refuses this chat: {error}") from error
    return begun if generate else whole, begun.removeprefix(whole) if begun.startswith(
        whole
    ) else ""


def _turn_end(tokenizer: Tokenizer) -> str | None:
    """The control token that ends what the assistant says, seen in a chat of one question and answer."""
    asked = [
        {"role": role, "content": _HOLE.format(i)} for i, role in enumerate(("user", "assistant"))
    ]
    rendered, _ = _render_template(tokenizer.template or CHATML, json.dumps([asked, []]), False)
    found = re.search(_names(tokenizer), rendered.rpartition("\ue001")[2])
    return found and found[0]


def _pieces(
    rendered: str, prompt: str, words: list, messages: Sequence[Message], tokenizer: Tokenizer
) -> Iterator[Piece]:
    """The chat in order: template text and words as strings, control tokens as ids, each with its role."""
    chunks = _HOLES.split(rendered)
    speakers = [None, *(words[int(hole)][0] for hole in chunks[1::2]), None]
    missing = set(range(len(messages))) - set(speakers)
    if missing:
        raise TextError(
            f"the chat template leaves out what message {min(missing)} ({messages[min(missing)]['role']}) says"
        )
    end = _turn_end(tokenizer)
    for k, chunk in enumerate(chunks):
        if k % 2:
            speaker, held, quoted = words[int(chunk)]
            answers = speaker is not None and messages[speaker]["role"] == "assistant"
            if quoted:
                held = json.dumps(held, ensure_ascii=False)[1:-1]
            yield from _said(
                held, Role.ANSWER if answers else Role.FIXED if quoted else Role.PROMPT, tokenizer
            )
            continue
        before, after = (
            speaker is not None and messages[speaker]["role"] == "assistant"
            for speaker in speakers[k // 2 :][:2]
        )
        first, last = (
            (0, 0)
            if before and speakers[k // 2] == speakers[k // 2 + 1]
            else _not_answer(chunk, before, after, end, prompt)
        )
        for text, role in (
            (chunk[:first], Role.ANSWER),
            (chunk[first:last], Role.FIXED),
            (chunk[last:], Role.ANSWER),
        ):
            yield from ((piece, role) for piece in _template_pieces(text, tokenizer))


def _not_answer(
    chunk: str, before: bool, after: bool, end: str | None, prompt: str
) -> tuple[int, int]:
    """Where, in template text between two speakers, an assistant's turn before it is over and one after it begins."""
    first = chunk.find(end) + len(end) if before and end and end in chunk else 0
    last = len(chunk)
    if after and prompt and prompt in chunk[first:]:
        last = chunk.rfind(prompt) + len(prompt)
    return first, last


def _said(content: str | Iterable[Part], role: Role, tokenizer: Tokenizer) -> Iterator[Piece]:
    for part in as_parts(content):
        if isinstance(part, Analysis):
            yield from (
                (tokenizer.control.get(part.before, part.before), role),
                (part.text, Role.ANALYSIS),
            )
            yield tokenizer.control.get(part.after, part.after), role
        elif isinstance(part, Context):
            yield part, Role.CONTEXT
        else:
            # Beside other parts, text was put there to stay plain.
            yield part, Role.FIXED if role is Role.PROMPT and not isinstance(content, str) else role


def _template_pieces(text: str, tokenizer: Tokenizer) -> Iterator[str | int]:
    for i, piece in enumerate(re.split(f"({_names(tokenizer)})", text)):
        if piece:
            yield tokenizer.id(piece) if i % 2 else piece


def _names(tokenizer: Tokenizer) -> str:
    return "|".join(map(re.escape, sorted(tokenizer.control, key=len, reverse=True)))


def _encode(pieces: Iterable[Piece], tokenizer: Tokenizer) -> list[Stretch | Given]:
    """Encodes each run of text between control tokens, contexts, and the bounds of what the assistant writes."""
    found: list[Stretch | Given] = []
    run: list[tuple[str, Role]] = []
    for piece, role in pieces:
        if run and (not isinstance(piece, str) or _trained(role) != _trained(run[-1][1])):
            found += _encode_run(run, tokenizer)
            run = []
        if isinstance(piece, str):
            run.append((piece, role))
        elif isinstance(piece, Context):
            found.append(Stretch(piece.tokens, role, piece.ratio))
        elif isinstance(piece, Given):
            found.append(piece)
        else:
            found.append(Stretch(np.atleast_1d(np.asarray(piece, np.int32)), role))
    return _join([*found, *_encode_run(run, tokenizer)])


def _trained(role: Role) -> bool:
    return role in (Role.ANSWER, Role.ANALYSIS)


def _encode_run(run: Sequence[tuple[str, Role]], tokenizer: Tokenizer) -> list[Stretch]:
    """Stretches of texts encoded as one; a token that holds characters of two is the template's or the answer's."""
    if not run:
        return []
    tokens, offsets = tokenizer.encode_offsets("".join(text for text, _ in run))
    ends = np.cumsum([len(text) for text, _ in run])
    first, last = (
        np.searchsorted(ends, offsets[:, 0], "right"),
        np.searchsorted(ends, offsets[:, 1], "left"),
    )
    shared = Role.ANSWER if _trained(run[0][1]) else Role.FIXED
    roles = [run[i][1] if i == j else shared for i, j in zip(first, last, strict=True)]
    bounds = [0, *(i for i in range(1, len(roles)) if roles[i] != roles[i - 1]), len(roles)]
    return [Stretch(tokens[i:j], roles[i]) for i, j in pairwise(bounds) if i < j]


def _join(stretches: Iterable[Stretch | Given]) -> list[Stretch | Given]:
    """The same, neighbours of one role made one; a context stays by itself."""
    joined: list[Stretch | Given] = []
    for stretch in stretches:
        last = joined[-1] if joined else None
        if (
            isinstance(last, Stretch)
            and isinstance(stretch, Stretch)
            and last.role == stretch.role != Role.CONTEXT
        ):
            joined[-1] = Stretch(np.concatenate([last.tokens, stretch.tokens]), last.role)
        elif isinstance(stretch, Given) or len(stretch.tokens) or stretch.role is Role.CONTEXT:
            joined.append(stretch)
    return joined
