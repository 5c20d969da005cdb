"""Compressed text: vectors for the decoder, stored in blocks on the device."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

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


class Latents:
    """A compressed text: M vectors [M D] for the decoder, in place of `tokens` tokens.

    `LanguageModel.compress` makes them, on the device, in blocks with the latents of one window
    each. They can also be made from an array of vectors [M D].

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

    def __len__(self) -> int:
        if isinstance(self._source, np.ndarray):
            return len(self._source)
        return sum(part.count for part in self._source)

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
