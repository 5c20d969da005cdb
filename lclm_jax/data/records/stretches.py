"""A prepared example: its tokens in stretches, each with the part it may play. Ratios, windows and wrapping come later.

A transform decides from lengths and roles alone, so it gives the same record whether the tokens of a stretch are an array
or, while rows are planned, only a `range`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

Tokens = np.ndarray | range


class Role(IntEnum):
    """What a stretch is; the numbers are those of the files."""

    DOCUMENT = 0  # all of a document
    FIXED = 1  # the template's own tokens, and what must stay plain
    PROMPT = 2  # what somebody says to the assistant; may be compressed
    CONTEXT = 3  # always compressed
    ANSWER = 4  # what the assistant writes, and the token that ends its turn; carries loss
    ANALYSIS = 5  # the same, of what it thinks before it answers; may be compressed


@dataclass(frozen=True)
class Stretch:
    tokens: Tokens
    role: Role
    ratio: int | None = None  # of a context that asks for one


def flatten(stretches: Sequence[Stretch]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [n] of an example and its table [stretches, 3]: length, role, ratio (0 for none)."""
    tokens = [
        np.zeros(0, np.int32),
        *(np.asarray(stretch.tokens, np.int32) for stretch in stretches),
    ]
    table = [(len(stretch.tokens), stretch.role, stretch.ratio or 0) for stretch in stretches]
    return np.concatenate(tokens), np.array(table, np.int32).reshape(-1, 3)


def split(tokens: Tokens, table: Iterable[Sequence[int]]) -> list[Stretch]:
    """The inverse of `flatten`; of a range, stretches of ranges."""
    stretches, start = [], 0
    for length, role, ratio in table:
        stretches.append(Stretch(tokens[start : start + length], Role(role), ratio or None))
        start += length
    return stretches
