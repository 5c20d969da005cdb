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
    """Tokens to compress, at the model's default ratio unless `ratio` names another of its ratios."""

    tokens: Tokens
    ratio: int | None = None


@dataclass(frozen=True)
class Given:
    """Slots for `count` latents computed before."""

    count: int


Span = Plain | Context | Given
