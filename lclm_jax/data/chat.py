"""Chats to records: the tokenizer's own chat template decides the form, the contents stay data.

A message is `{"role", "content"}`; a content is text, or a list of parts. A part is text (str or token ids), a
`Context` to compress, or latents given as `Given`. `parse_memory` makes such a list from text with memory tags.
"""

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np

from lclm_jax.data.spans import Context, Given, Plain, Span
from lclm_jax.data.tokens import MEMORY_END, MEMORY_START, TextError, Tokenizer

Part = str | np.ndarray | Context | Given
Message = dict[str, Any]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_HOLE = "\ue000{}\ue001"  # private-use characters mark where a content goes in the rendered template
_HOLES = re.compile("\ue000([0-9]+)\ue001")


def parse_memory(text: str, tokenizer: Tokenizer) -> list[Part]:
    """Text with `<|memory_start|>...<|memory_end|>` around what is to be compressed, as parts.

    Call it on text you wrote; text from elsewhere goes in as a part of its own, where tags are only characters.
    Raises TextError when tags are unbalanced, nested or hold nothing.
    """
    parts: list[Part] = []
    held: str | None = None  # text since a start tag
    for piece in re.split(f"({re.escape(MEMORY_START)}|{re.escape(MEMORY_END)})", text):
        if piece == MEMORY_START:
            if held is not None:
                raise TextError(f"memory tags cannot nest: a second {MEMORY_START} before {MEMORY_END} in {text[:80]!r}")
            held = ""
        elif piece == MEMORY_END:
            if held is None:
                raise TextError(f"memory tags must pair up: {MEMORY_END} without {MEMORY_START} in {text[:80]!r}")
            if not held:
                raise TextError(f"expected text between {MEMORY_START} and {MEMORY_END}, got none: leave out the tags")
            parts.append(Context(tokenizer.encode(held)))
            held = None
        elif held is not None:
            held = piece
        elif piece:
            parts.append(piece)
    if held is not None:
        raise TextError(f"memory tags must pair up: {MEMORY_START} without {MEMORY_END} in {text[:80]!r}")
    return parts


def render_chat(messages: Sequence[Message], tokenizer: Tokenizer, generate: bool = False) -> list[Span]:
    """The chat as a record, loss on what the assistant says and on the token that ends its turn.

    Contents are joined to the template's own text before encoding, so that tokens come out as they would from the
    rendered string; only the template can bring in a control token. With `generate`, ends where the assistant begins.
    """
    if not messages:
        raise TextError("expected at least one message, got none")
    rendered = _render_template(tokenizer.template or CHATML, tuple(message["role"] for message in messages), generate)
    pieces: list[tuple[Part | int, bool]] = []  # (text, tokens, span or control id; trained)
    after_assistant = False
    for i, chunk in enumerate(_HOLES.split(rendered)):
        if i % 2:
            message = messages[int(chunk)]
            after_assistant = message["role"] == "assistant"
            pieces += [(part, after_assistant) for part in as_parts(message["content"])]
        else:
            pieces += _template_pieces(chunk, tokenizer, after_assistant)
    return _encode_pieces(pieces, tokenizer)


def as_parts(content: str | Iterable[Part]) -> list[Part]:
    return [content] if isinstance(content, str) else list(content)


@cache
def _render_template(template: str, roles: tuple[str, ...], generate: bool) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    strange = [role for role in roles if not role.isidentifier()]
    if strange:
        raise TextError(f"a role is one word such as user, got {strange[0]!r}; put what was said into content")
    chat = [{"role": role, "content": _HOLE.format(i)} for i, role in enumerate(roles)]
    rendered, _ = render_jinja_template([chat], chat_template=template, add_generation_prompt=generate)
    return rendered[0]


def _template_pieces(text: str, tokenizer: Tokenizer, after_assistant: bool) -> list[tuple[Part | int, bool]]:
    """Template text with its control tokens as ids; the one that ends the assistant's turn is trained."""
    names = "|".join(map(re.escape, sorted(tokenizer.control, key=len, reverse=True)))
    pieces: list[tuple[Part | int, bool]] = []
    for i, piece in enumerate(re.split(f"({names})", text)):
        if i % 2:
            pieces.append((tokenizer.id(piece), after_assistant and not pieces))
        elif piece:
            pieces.append((piece, False))
    return pieces


def _encode_pieces(pieces: list[tuple[Part | int, bool]], tokenizer: Tokenizer) -> list[Span]:
    record: list[Span] = []
    tokens: list[np.ndarray] = []
    text, last = "", False

    def end_text():
        nonlocal text
        if text:
            tokens.append(tokenizer.encode(text))
        text = ""

    def end_span():
        end_text()
        if tokens:
            record.append(Plain(np.concatenate(tokens), last))
        tokens.clear()

    for piece, trained in pieces:
        if trained != last:
            end_span()
            last = trained
        if isinstance(piece, str):
            text += piece
            continue
        end_text()
        if isinstance(piece, (Context, Given)):
            end_span()
            record.append(piece)
        else:
            tokens.append(np.atleast_1d(np.asarray(piece, np.int32)))
    end_span()
    return record
