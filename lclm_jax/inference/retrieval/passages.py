"""Passages of a store's documents that fit a question, as parts of a prompt.

The best passages are given as text, and the others as latents that the store has. Any vector store
will do: a retriever is an object with the method `retrieve`. `retrieval.lance` has one.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lclm_jax.config import ConfigError
from lclm_jax.errors import UserError
from lclm_jax.inference.latents import Latents
from lclm_jax.inference.store import Store, StoredLatents

PASSAGE_CHARACTERS = 1000  # by default, at most; about 250 tokens of English

Range = tuple[int, int]  # start and stop


class RetrievalError(UserError, ValueError):
    """A passage that its document does not have, or vectors that do not fit an index."""


@dataclass(frozen=True)
class Passage:
    """Characters `start` to `stop` of a document of a store.

    Attributes:
        document: its name in the store.
        score: how well the passage fits the question; the larger, the better.
    """

    document: str
    start: int
    stop: int
    score: float = 0.0


class Retriever(Protocol):
    """Finds passages that fit a question."""

    def retrieve(self, question: str, count: int) -> Sequence[Passage]:
        """Return up to `count` passages, the best first."""
        ...


def retrieved_parts(
    store: Store, passages: Sequence[Passage], plain: int = 2, ratio: int | None = None
) -> list[str | Latents]:
    """Return passages as parts of a prompt, each under the name of its document.

        passages = retriever.retrieve(question, count=8)
        model.generate([*retrieved_parts(store, passages), question])

    The first `plain` passages become text and the others latents of the store; nothing is encoded.
    Passages that overlap or touch become one, and latents do not repeat what the text has. The
    passages of a document follow each other in its order; documents are ordered by their first
    passage. A latent stands for several tokens, so latents may begin before a passage and end after
    it. `ratio` is needed where a document has several.

    Every part is a part of a list, in which tags and control tokens of a document stay plain text.

    Raises StoreError for an unknown document, RetrievalError for characters that a document does
    not have, and ConfigError for a negative `plain`.
    """
    if plain < 0:
        raise ConfigError(f"plain must be at least 0, got {plain}")
    names = dict.fromkeys(passage.document for passage in passages)
    documents = {name: store.get(name, ratio) for name in names}
    as_text = mark_characters(passages[:plain], documents)
    as_latents = mark_characters(passages[plain:], documents)

    contents: list[tuple[str, str | Latents]] = []
    for name, mask in as_text.items():
        text = documents[name].text
        contents += [(name, text[start:stop]) for start, stop in find_runs(mask)]
    for name, mask in as_latents.items():
        latents = documents[name]
        missing = mask & ~as_text.get(name, np.zeros_like(mask))
        contents += [
            (name, latents[start:stop]) for start, stop in find_latents(missing, latents.offsets)
        ]
    return [part for name, content in contents for part in (f"{name}:\n", content, "\n")]


def retrieved_documents(
    store: Store, passages: Sequence[Passage], ratio: int | None = None
) -> dict[str, Latents]:
    """Return passages as documents for an `Agent`, which may then expand their chunks.

        Agent(model, retrieved_documents(store, passages)).ask(question)

    Passages that overlap or touch become one; a name says which characters of a document it has.
    Nothing is encoded. Raises the errors of `retrieved_parts`.
    """
    names = dict.fromkeys(passage.document for passage in passages)
    documents = {name: store.get(name, ratio) for name in names}
    parts: dict[str, Latents] = {}
    for name, mask in mark_characters(passages, documents).items():
        latents = documents[name]
        for start, stop in find_latents(mask, latents.offsets):
            first, last = int(latents.offsets[start, 0]), int(latents.offsets[stop - 1, 1])
            parts[f"{name}, characters {first} to {last}"] = latents[start:stop]
    return parts


def mark_characters(
    passages: Sequence[Passage], documents: Mapping[str, StoredLatents]
) -> dict[str, np.ndarray]:
    """Return, for each document of the passages, which of its characters they contain."""
    masks: dict[str, np.ndarray] = {}
    for passage in passages:
        name, start, stop = passage.document, passage.start, passage.stop
        length = len(documents[name].text)
        if not 0 <= start < stop <= length:
            raise RetrievalError(
                f"expected a passage of characters 0 to {length} of {name}, got {start} to {stop}; "
                "if the document has changed, index it again"
            )
        masks.setdefault(name, np.zeros(length, bool))[start:stop] = True
    return masks


def find_latents(mask: np.ndarray, offsets: np.ndarray) -> list[Range]:
    """Return the ranges of latents that stand for marked characters of their text.

    `offsets` [M, 2] are the characters (start, stop) of each latent.
    """
    marked_before = np.append(0, np.cumsum(mask))  # [characters + 1]
    starts, stops = offsets.T
    return find_runs(marked_before[stops] > marked_before[starts])


def find_runs(mask: np.ndarray) -> list[Range]:
    """Return the ranges in which a mask is true.

    >>> find_runs(np.array([True, True, False, True]))
    [(0, 2), (3, 4)]
    """
    changes = np.flatnonzero(np.diff(mask, prepend=False, append=False)).tolist()
    return list(zip(changes[::2], changes[1::2], strict=True))


def split_passages(text: str, characters: int = PASSAGE_CHARACTERS) -> list[Range]:
    """Return consecutive ranges of a text, of at most `characters` each, that end after a blank.

    A longer word is cut. Raises ConfigError if `characters` is not positive.

    >>> split_passages("one two three", characters=8)
    [(0, 8), (8, 13)]
    """
    if characters < 1:
        raise ConfigError(f"passages must have at least 1 character, got {characters}")
    ends = rf".{{1,{characters}}}(?:(?<=\s)|\Z)|.{{{characters}}}"
    return [match.span() for match in re.finditer(ends, text, re.DOTALL)]
