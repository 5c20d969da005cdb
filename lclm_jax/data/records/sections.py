"""A prepared example: its tokens in sections, each with the role it plays.

Shards store sections; a stream's transform turns them into a record. Transforms read only lengths
and roles, so the tokens of a section may be an array or, while rows are planned, a `range`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from lclm_jax.data.records.spans import Tokens


class Role(IntEnum):
    """The role of a section; shards store these numbers."""

    DOCUMENT = 0  # a whole document
    FIXED = 1  # tokens of the chat template, and text that must stay plain
    PROMPT = 2  # a message to the assistant; may be compressed
    CONTEXT = 3  # always compressed
    ANSWER = 4  # a message of the assistant and its end-of-turn token; carries loss
    ANALYSIS = 5  # the assistant's reasoning before an answer; carries loss or is compressed


@dataclass(frozen=True)
class Section:
    """Consecutive tokens of one role."""

    tokens: Tokens
    role: Role
    ratio: int | None = None  # the compression ratio a context asks for


def flatten_sections(sections: Sequence[Section]) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens [n] of an example and its table [sections, 3].

    The columns of the table are length, role and ratio, 0 for none.
    """
    parts = [np.asarray(section.tokens, np.int32) for section in sections]
    table = [(len(section.tokens), section.role, section.ratio or 0) for section in sections]
    tokens = np.concatenate([np.zeros(0, np.int32), *parts])
    return tokens, np.array(table, np.int32).reshape(-1, 3)


def split_sections(tokens: Tokens, table: Iterable[Sequence[int]]) -> list[Section]:
    """Invert `flatten_sections`; a range gives sections whose tokens are ranges."""
    sections, start = [], 0
    for length, role, ratio in table:
        sections.append(Section(tokens[start : start + length], Role(role), ratio or None))
        start += length
    return sections
