"""Compressed text: vectors for the decoder, stored in blocks on the device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import jax
import numpy as np

from lclm_jax.config import ModelConfig
from lclm_jax.config.settings import Size, parse
from lclm_jax.data.records import latent_starts
from lclm_jax.errors import UserError
from lclm_jax.typing import Array


class LatentsError(UserError, ValueError):
    """Latents of a wrong shape, or with NaN or infinite values."""


@dataclass(frozen=True)
class BlockSlice:
    """Rows `first` to `first + count` of one block [P D] of latents."""

    block: Array
    first: int
    count: int


@dataclass(frozen=True)
class LatentStarts:
    """The first token and the first character of each latent, in the text that it stands for."""

    tokens: np.ndarray  # [M]
    characters: np.ndarray  # [M]

    def offsets(self, length: int) -> np.ndarray:
        """Return the characters [M, 2] (start, stop) of each latent in a text of a length."""
        return np.stack([self.characters, np.append(self.characters[1:], length)], axis=1)


class Latents:
    """A compressed text: M vectors [M D] for the decoder, in place of `tokens` tokens.

    `LanguageModel.compress` makes them, on the device, in blocks with the latents of one or more
    windows each. They can also be made from an array of vectors [M D]. Those of a text know it
    (`text`, None for others) and the characters of each latent (`offsets`), and
    `latents[start:stop]` are the latents of a part of it.

    Raises LatentsError for an array of another rank, or with NaN or infinite values. The values
    of a compressed text are checked when `vectors` is first read.
    """

    def __init__(self, vectors: np.ndarray | Sequence[BlockSlice], tokens: int):
        source = vectors if _are_slices(vectors) else np.asarray(vectors)
        if isinstance(source, np.ndarray):
            if source.ndim != 2:
                raise LatentsError(f"expected vectors [M, D], got an array of shape {source.shape}")
            check_finite(source)
        self._source, self.tokens = source, tokens
        self._copies: dict[tuple[int, str], list[BlockSlice]] = {}
        self.text: str | None = None
        self._find_starts: Callable[[], LatentStarts] | None = None

    def with_text(self, text: str, find_starts: Callable[[], LatentStarts]) -> "Latents":
        """Return these latents with the text that they stand for."""
        latents = Latents(self._source, self.tokens)
        latents.text, latents._find_starts = text, find_starts
        return latents

    def __reduce__(self) -> tuple[Callable[..., "Latents"], tuple[Any, ...]]:
        """Return what a pickle contains; raises the errors of `vectors`."""
        starts = None if self._find_starts is None else self.starts
        return restore, (self.vectors, self.tokens, self.text, starts)

    def __len__(self) -> int:
        if isinstance(self._source, np.ndarray):
            return len(self._source)
        return sum(part.count for part in self._source)

    def __getitem__(self, part: slice) -> "Latents":
        """Return consecutive latents, with their part of the text.

        Raises LatentsError for latents without a text, and for a part that is empty or has gaps.
        """
        if not isinstance(part, slice):
            raise LatentsError(f"expected a range of latents, as in latents[3:5], got {part!r}")
        start, stop, step = part.indices(len(self))
        if step != 1 or start >= stop:
            raise LatentsError(f"expected a range of 0 to {len(self)} latents, got {part}")
        starts, text = self.starts, self.text
        assert text is not None
        tokens = np.append(starts.tokens, self.tokens)
        characters = np.append(starts.characters, len(text))
        own = LatentStarts(
            starts.tokens[start:stop] - tokens[start],
            starts.characters[start:stop] - characters[start],
        )
        latents = Latents(self._cut(start, stop), int(tokens[stop] - tokens[start]))
        return latents.with_text(text[characters[start] : characters[stop]], lambda: own)

    def _cut(self, start: int, stop: int) -> np.ndarray | list[BlockSlice]:
        """Return the vectors, or the slices of blocks, of latents `start` to `stop`."""
        if self._is_array:
            return self.vectors[start:stop]
        first, last = np.searchsorted(self._ends, [start, stop - 1], "right").tolist()
        before = int(self._ends[first - 1]) if first else 0
        return cut(self._slices(first, last + 1), start - before, stop - before)

    @property
    def _is_array(self) -> bool:
        """Return whether the vectors were given as an array on the host."""
        return isinstance(self._source, np.ndarray)

    def _slices(self, first: int, stop: int) -> Sequence[BlockSlice]:
        """Return the slices `first` to `stop` of blocks."""
        assert not isinstance(self._source, np.ndarray)
        return self._source[first:stop]

    @cached_property
    def _ends(self) -> np.ndarray:
        """Number of latents up to the end of each slice."""
        assert not isinstance(self._source, np.ndarray)
        return np.cumsum([part.count for part in self._source])

    def chunks(self, tokens: int) -> "list[Latents]":
        """Return the latents of consecutive parts of the text, of about `tokens` tokens each.

        A part begins with the first latent at or after a multiple of `tokens`. Raises ConfigError
        unless there is at least one token.
        """
        tokens = parse(Size, tokens, "tokens of a chunk")
        starts = self.starts.tokens
        bounds = np.searchsorted(starts, np.arange(0, self.tokens, tokens)).tolist()
        return [self[start:stop] for start, stop in pairwise([*bounds, len(self)]) if start < stop]

    @cached_property
    def starts(self) -> LatentStarts:
        """First token and character of every latent; raises LatentsError without a text."""
        if self._find_starts is None:
            raise LatentsError(
                "expected latents of a text, got vectors or tokens; use LanguageModel.compress"
            )
        return self._find_starts()

    @property
    def offsets(self) -> np.ndarray:
        """Characters [M, 2] (start, stop) of the text that each latent stands for.

        They leave no gaps. A character across the tokens of two latents is part of the second.
        """
        starts = self.starts
        assert self.text is not None
        return starts.offsets(len(self.text))

    @property
    def width(self) -> int:
        """Width D of the vectors, equal to the decoder's width."""
        if isinstance(self._source, np.ndarray):
            return self._source.shape[1]
        return self._source[0].block.shape[-1]

    @cached_property
    def vectors(self) -> np.ndarray:
        """The vectors [M D] as one array on the host; reading it waits for the device.

        Raises LatentsError if a vector is NaN or infinite.
        """
        if isinstance(self._source, np.ndarray):
            return self._source
        blocks = jax.device_get([part.block for part in self._source])
        rows = [
            block[part.first : part.first + part.count]
            for block, part in zip(blocks, self._source, strict=True)
        ]
        vectors = np.concatenate(rows)
        check_finite(vectors)
        return vectors

    def slices(self, size: int, dtype: str) -> Sequence[BlockSlice]:
        """Return the latents as slices of blocks [size D].

        They are copied into new blocks of `dtype`, once, if they come from an array or from a
        model with another block size.
        """
        source = self._source
        if not isinstance(source, np.ndarray) and all(len(part.block) == size for part in source):
            return source

        if (size, dtype) not in self._copies:
            vectors = self.vectors.astype(dtype)
            parts = [vectors[start : start + size] for start in range(0, len(vectors), size)]
            self._copies[size, dtype] = [
                BlockSlice(np.pad(part, ((0, size - len(part)), (0, 0))), 0, len(part))
                for part in parts
            ]
        return self._copies[size, dtype]

    def block_until_ready(self) -> "Latents":
        """Wait until the device has computed the latents, and return them."""
        if not isinstance(self._source, np.ndarray):
            jax.block_until_ready([part.block for part in self._source])
        return self


def restore(
    vectors: np.ndarray, tokens: int, text: str | None, starts: LatentStarts | None
) -> Latents:
    """Return latents from the contents of a pickle."""
    latents = Latents(vectors, tokens)
    return latents if text is None or starts is None else latents.with_text(text, lambda: starts)


def cut(slices: Sequence[BlockSlice], start: int, stop: int) -> list[BlockSlice]:
    """Return the parts of slices that have latents `start` to `stop` of all."""
    parts, first = [], 0  # `first` is the number of a slice's first latent
    for part in slices:
        left, right = max(start - first, 0), min(stop - first, part.count)
        if left < right:
            parts.append(BlockSlice(part.block, part.first + left, right - left))
        first += part.count
    return parts


def starts_of_latents(offsets: np.ndarray, config: ModelConfig, ratio: int | None) -> LatentStarts:
    """Return the starts of the latents of a text, given the characters [T, 2] of its tokens."""
    tokens = latent_starts(len(offsets), config, ratio)
    # A latent without tokens is that of a text without tokens.
    characters = offsets[tokens, 0] if len(offsets) else np.zeros(len(tokens), np.int64)
    characters[0] = 0
    return LatentStarts(tokens, np.maximum.accumulate(characters))


def check_finite(vectors: np.ndarray):
    """Raise LatentsError if vectors [M D] are not numbers or not finite."""
    try:
        finite = np.isfinite(vectors.astype(np.float32)).all(axis=-1)
    except (TypeError, ValueError) as error:
        raise LatentsError(f"expected vectors of numbers, got {vectors.dtype}") from error
    if not finite.all():
        rows = np.flatnonzero(~finite)
        raise LatentsError(
            f"{len(rows)} of {len(vectors)} latents are NaN or infinite, "
            f"the first is number {rows[0]}"
        )


def _are_slices(vectors: Any) -> bool:
    return len(vectors) > 0 and all(isinstance(part, BlockSlice) for part in vectors)
