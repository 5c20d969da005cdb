"""Parsing of `<|memory_start|>...<|memory_end|>`, the published tags around text to compress."""

import re

from lclm_jax.data.chat.messages import Part
from lclm_jax.data.records import Context
from lclm_jax.data.text.tokenizer import MEMORY_END, MEMORY_START, TextError, Tokenizer

TAG = re.compile(f"({re.escape(MEMORY_START)}|{re.escape(MEMORY_END)})")
MAX_QUOTED_CHARACTERS = 80


def parse_context_tags(text: str, tokenizer: Tokenizer) -> list[Part]:
    """Return text as parts of a message; text between memory tags becomes contexts.

    Call it only on trusted text. Other text belongs in a part of its own, where tags are
    ordinary characters. Raises TextError for tags that are unbalanced, nested or empty.
    """
    return [
        Context(tokenizer.encode(piece)) if is_context else piece
        for piece, is_context in split_context_tags(text)
    ]


def split_context_tags(text: str) -> list[tuple[str, bool]]:
    """Return the pieces of text around memory tags, each with whether it is a context.

    Raises TextError for tags that are unbalanced, nested or empty.

    >>> split_context_tags("Read <|memory_start|>a b<|memory_end|> now.")
    [('Read ', False), ('a b', True), (' now.', False)]
    """
    quoted = repr(text[:MAX_QUOTED_CHARACTERS])
    pieces: list[tuple[str, bool]] = []
    context: str | None = None  # the text since an open start tag
    for piece in TAG.split(text):
        if piece == MEMORY_START:
            if context is not None:
                raise TextError(
                    f"memory tags cannot nest: a second {MEMORY_START} before {MEMORY_END} "
                    f"in {quoted}"
                )
            context = ""
        elif piece == MEMORY_END:
            if context is None:
                raise TextError(
                    f"memory tags must pair up: {MEMORY_END} without {MEMORY_START} in {quoted}"
                )
            if not context:
                raise TextError(
                    f"expected text between {MEMORY_START} and {MEMORY_END}, got none; "
                    "remove the tags"
                )
            pieces.append((context, True))
            context = None
        elif context is not None:
            context = piece
        elif piece:
            pieces.append((piece, False))

    if context is not None:
        raise TextError(
            f"memory tags must pair up: {MEMORY_START} without {MEMORY_END} in {quoted}"
        )
    return pieces
