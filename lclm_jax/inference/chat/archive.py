"""Latents of many short texts as one context, in full blocks."""

from collections.abc import Sequence

import numpy as np

from lclm_jax.inference.latents import BlockSlice, Latents


class Archive:
    """The latents of messages in order, which grow at the end.

    A block is changed only until it is full, so what a prompt read of them before is still the
    same. `size` is the number of latents of a block [P D].
    """

    def __init__(self, size: int):
        self.size = size
        self.tokens = 0
        self._blocks: list[np.ndarray] = []
        self._count = 0  # latents in all blocks

    def __len__(self) -> int:
        return self._count

    def append(self, latents: Latents):
        """Add latents at the end."""
        self.tokens += latents.tokens
        left = latents.vectors
        while len(left):
            used = self._count % self.size
            if used == 0:
                self._blocks.append(np.zeros((self.size, left.shape[1]), left.dtype))
            taken = left[: self.size - used]
            block = self._blocks[-1].copy()  # the old one may be part of a prompt that was read
            block[used : used + len(taken)] = taken
            self._blocks[-1] = block
            self._count += len(taken)
            left = left[len(taken) :]

    @property
    def latents(self) -> Latents:
        """All of them as one context."""
        counts = [self.size] * len(self._blocks)
        counts[-1] -= -self._count % self.size
        slices = [BlockSlice(block, 0, n) for block, n in zip(self._blocks, counts, strict=True)]
        return Latents(slices, self.tokens)


def join(parts: Sequence[Latents], size: int) -> Latents:
    """Return latents one after the other as one context, in full blocks."""
    archive = Archive(size)
    for part in parts:
        archive.append(part)
    return archive.latents
