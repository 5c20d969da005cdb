"""A record: a list of spans, each plain text, a context to compress, or latents computed before."""

from dataclasses import dataclass

import numpy as np

Tokens = np.ndarray | range


@dataclass(frozen=True)
class Plain:
    """Tokens the decoder reads as they are; `trained` tokens carry loss."""

    tokens: Tokens
    trained: bool = False


@dataclass(frozen=True)
class Context:
    """Tokens to compress at `ratio`, by default the model's default ratio."""

    tokens: Tokens
    ratio: int | None = None


@dataclass(frozen=True)
class Given:
    """Slots for `count` latents computed before."""

    count: int


Span = Plain | Context | Given
