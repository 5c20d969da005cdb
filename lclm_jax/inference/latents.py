"""Compressed texts: vectors for the decoder, in blocks that lie on the device."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from lclm_jax.errors import UserError
from lclm_jax.typing import Array


class LatentsError(UserError, ValueError):
    """Latents that are of another shape, NaN or infinite."""


@dataclass(frozen=True)
class BlockSlice:
    """Some latents of one block [P D], which lies on the device."""

    block: Array
    first: int
    count: int


class Latents:
    """A compressed text: vectors for the decoder, and how many tokens they stand for.

    They lie on the device, in blocks that hold the latents of one window. Made from an array of
    vectors [M D], or by `LanguageModel.compress`. Raises LatentsError for vectors that are NaN
    or infinite; those of a compressed text are checked when `vectors` is read.
    """

    def __init__(self, vectors: np.ndarray | Sequence[BlockSlice], tokens: int):
        given = vectors if _are_slices(vectors) else np.asarray(vectors)
        if isinstance(given, np.ndarray):
            if given.ndim != 2:
                raise LatentsError(f"expected vectors [M, D], got an array of shape {given.shape}")
            check_finite(given)
        self._given, self.tokens = given, tokens
        self._copies: dict[tuple[int, str], list[BlockSlice]] = {}

    def __len__(self) -> int:
        if isinstance(self._given, np.ndarray):
            return len(self._given)
        return sum(one.count for one in self._given)

    @property
    def width(self) -> int:
        """The width of the decoder that reads them."""
        if isinstance(self._given, np.ndarray):
            return self._given.shape[1]
        return self._given[0].block.shape[-1]

    @cached_property
    def vectors(self) -> np.ndarray:
        """The vectors [M D] as one array of the host; waits for the device."""
        if isinstance(self._given, np.ndarray):
            return self._given
        blocks = jax.device_get([one.block for one in self._given])
        parts = [
            block[one.first : one.first + one.count]
            for block, one in zip(blocks, self._given, strict=True)
        ]
        vectors = np.concatenate(parts)
        check_finite(vectors)
        return vectors

    def slices(self, size: int, dtype: str) -> Sequence[BlockSlice]:
        """The latents as slices of blocks of `size` latents, copied into new ones where they lie in
        an array, or in the blocks of a model of another size."""
        given = self._given
        if not isinstance(given, np.ndarray) and all(len(one.block) == size for one in given):
            return given
        if (size, dtype) not in self._copies:
            vectors = self.vectors.astype(dtype)
            parts = [vectors[start : start + size] for start in range(0, len(vectors), size)]
            self._copies[size, dtype] = [
                BlockSlice(np.pad(part, ((0, size - len(part)), (0, 0))), 0, len(part))
                for part in parts
            ]
        return self._copies[size, dtype]

    def block_until_ready(self) -> "Latents":
        """Waits until the device has made them."""
        if not isinstance(self._given, np.ndarray):
            jax.block_until_ready([one.block for one in self._given])
        return self


def check_finite(vectors: np.ndarray):
    """Raises LatentsError for vectors [M D] that are not numbers or not finite."""
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
    return len(vectors) > 0 and all(isinstance(one, BlockSlice) for one in vectors)
