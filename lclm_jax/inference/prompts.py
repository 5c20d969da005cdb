"""Prompts as the decoder reads them: tokens, slots, blocks of latents, and the chunks they are cut
into."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import flax.struct
import jax
import numpy as np

from lclm_jax.batch import Places
from lclm_jax.config import ModelConfig
from lclm_jax.distributed.sharding import replicate
from lclm_jax.typing import Array, Float, Int

CHUNKS = (256, 4096)  # positions of a prompt that are read at once


@dataclass(frozen=True)
class Prompt:
    """B prompts of up to T positions, padded on the right, and the latents that fill their slots.

    Latents lie in blocks [P D] on the device; slot number n is row n % P of block n // P.
    """

    tokens: Int[np.ndarray, "B T"]
    slots: Int[np.ndarray, "B T"]  # -1 is an ordinary token
    lengths: Int[np.ndarray, "B"]
    blocks: Sequence[Array] = field(default_factory=list)

    @classmethod
    def of_arrays(cls, tokens, slots, latents: Float[Array, "B M D"], lengths) -> "Prompt":
        """A prompt whose slots number the latents of their own row."""
        rows, count = latents.shape[:2]
        offsets = np.arange(rows)[:, None] * count
        numbered = np.where(slots >= 0, slots + offsets, -1).astype(np.int32)
        blocks = list(latents) if count else []
        return cls(np.asarray(tokens, np.int32), numbered, np.asarray(lengths), blocks)


@flax.struct.dataclass
class Chunk:
    """T positions of each of B prompts, as `read_chunk` takes them."""

    tokens: Int[Array, "B T"]
    slots: Int[Array, "B T"]  # rows of the blocks, all of them joined; -1 is an ordinary token
    places: Places  # [B T]
    last: Int[Array, "B"]  # the column of a prompt's last token; -1 if it is in another chunk
    count: Int[Array, ""]  # columns in use
    blocks: tuple[Float[Array, "P D"], ...]


@dataclass(frozen=True)
class PlannedChunk:
    """Columns of prompts that one chunk reads, the chunk's length, and the blocks it needs."""

    first: int
    stop: int
    length: int
    blocks: Int[np.ndarray, "blocks"]


def plan_chunks(prompt: Prompt, config: ModelConfig) -> list[PlannedChunk]:
    """Cuts prompts into chunks of few lengths, each with a bounded number of latent blocks."""
    rows, total = len(prompt.tokens), int(prompt.lengths.max())
    size = block_size(prompt, config)
    chunks, first = [], 0
    while first < total:
        length = chunk_length(total - first)
        stop = min(first + length, total)
        numbers = prompt.slots[:, first:stop] // size  # -1 where there is none
        stop = first + _columns_within(numbers, block_limit(rows, length, size))
        used = np.unique(numbers[:, : stop - first])
        chunks.append(PlannedChunk(first, stop, length, used[used >= 0]))
        first = stop
    return chunks


def chunk_length(left: int) -> int:
    """The length of the next chunk where so many positions are left to read."""
    small, large = CHUNKS
    return large if left > large // 2 else small


def block_size(prompt: Prompt, config: ModelConfig) -> int:
    """Latents of a block."""
    return len(prompt.blocks[0]) if prompt.blocks else config.compression.latents_per_window


def block_limit(rows: int, length: int, size: int) -> int:
    """Blocks a chunk is given: enough for a context that fills it, and a part of two others."""
    return rows * (length // size + 2)


def _columns_within(numbers: Int[np.ndarray, "B T"], limit: int) -> int:
    """How many of the first columns name at most `limit` different blocks."""
    columns = numbers.shape[1]
    if len(np.unique(numbers)) <= limit:
        return columns
    seen: set[int] = set()
    for column in range(columns):
        seen.update(numbers[:, column][numbers[:, column] >= 0].tolist())
        if len(seen) > limit:
            return column
    return columns


def make_chunk(prompt: Prompt, planned: PlannedChunk, config: ModelConfig, start: int = 0) -> Chunk:
    """The arrays of one chunk of a prompt that has blocks (`with_blocks`); `start` is the number of
    tokens in the cache before it."""
    size, count = block_size(prompt, config), planned.stop - planned.first
    columns = np.arange(planned.first, planned.first + planned.length, dtype=np.int32)[None]
    real = columns < np.minimum(prompt.lengths, planned.stop)[:, None]
    last = prompt.lengths - 1 - planned.first
    slots = _pad(prompt.slots[:, planned.first : planned.stop], planned.length, -1)
    if len(planned.blocks):
        renumbered = np.searchsorted(planned.blocks, slots // size) * size + slots % size
        slots = np.where(slots >= 0, renumbered, -1).astype(np.int32)
    limit = block_limit(len(prompt.tokens), planned.length, size)
    blocks = [prompt.blocks[i] for i in planned.blocks]
    filler = prompt.blocks[0]
    return Chunk(
        _pad(prompt.tokens[:, planned.first : planned.stop], planned.length, 0),
        slots,
        Places(real.astype(np.int32), np.where(real, columns + start, 0).astype(np.int32)),
        np.where((last >= 0) & (last < count), last, -1).astype(np.int32),
        np.int32(count),
        (*blocks, *[filler] * (limit - len(blocks))),
    )


def _pad(x: Int[np.ndarray, "B T"], length: int, fill: int) -> Int[np.ndarray, "B T"]:
    return np.pad(x, ((0, 0), (0, length - x.shape[1])), constant_values=fill).astype(np.int32)


def with_blocks(prompt: Prompt, config: ModelConfig) -> Prompt:
    """A prompt whose blocks of latents are on the devices; it has one at least."""
    size = config.compression.latents_per_window
    nothing = np.zeros((size, config.decoder.width), config.dtype)
    blocks = [x if isinstance(x, jax.Array) else replicate(x) for x in prompt.blocks or [nothing]]
    return replace(prompt, blocks=blocks)
