"""Prompts as the decoder reads them: tokens, slots and blocks of latents, read in chunks.

Chunks have one of two lengths, so a few compiled programs serve prompts of any length.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import flax.struct
import jax
import numpy as np

from lclm_jax.batch import Places
from lclm_jax.config import ModelConfig
from lclm_jax.distributed.sharding import replicate
from lclm_jax.typing import Array, Float, Int

CHUNKS = (256, 4096)  # lengths of a chunk, in positions


@dataclass(frozen=True)
class Prompt:
    """A batch of B prompts of up to T positions, padded on the right, and their latents.

    The latents are stored in blocks [P D]: slot n is filled by row n % P of block n // P.
    `lengths` counts the positions of each prompt before its padding.
    """

    tokens: Int[np.ndarray, "B T"]
    slots: Int[np.ndarray, "B T"]  # index of a latent in the joined blocks; -1: a token
    lengths: Int[np.ndarray, "B"]
    blocks: Sequence[Array] = field(default_factory=list)

    @classmethod
    def of_arrays(cls, tokens, slots, latents: Float[Array, "B M D"], lengths) -> "Prompt":
        """Build a prompt from arrays whose slots index the latents of their own row.

        `tokens` and `slots` have shape [B T], `lengths` [B]. Each row becomes one block.
        """
        rows, count = latents.shape[:2]
        offsets = np.arange(rows)[:, None] * count
        global_slots = np.where(slots >= 0, slots + offsets, -1).astype(np.int32)
        blocks = list(latents) if count else []
        return cls(np.asarray(tokens, np.int32), global_slots, np.asarray(lengths), blocks)


@flax.struct.dataclass
class Chunk:
    """T positions of each of B prompts, the input of `generation.read_chunk`."""

    tokens: Int[Array, "B T"]
    slots: Int[Array, "B T"]  # rows of the concatenated blocks; -1: a token
    places: Places  # [B T]
    last: Int[Array, "B"]  # column of the last token; -1 if another chunk has it
    count: Int[Array, ""] | np.int32  # columns in use
    blocks: tuple[Float[Array, "P D"], ...]


@dataclass(frozen=True)
class PlannedChunk:
    """Plan of one chunk: the columns it reads, its padded length, and the blocks it needs."""

    first: int
    stop: int  # exclusive
    length: int
    blocks: Int[np.ndarray, "blocks"]  # sorted indices into `Prompt.blocks`


def plan_chunks(
    prompt: Prompt, config: ModelConfig, available: int | None = None
) -> list[PlannedChunk]:
    """Split prompts into chunks of a few lengths, each with a bounded number of blocks.

    With `available` positions in a cache, no chunk with its padding goes beyond them if a shorter
    one does not.
    """
    rows, total = len(prompt.tokens), int(prompt.lengths.max())
    size = block_size(prompt, config)
    chunks, first = [], 0
    while first < total:
        length = chunk_length(total - first)
        if available is not None and first + length > available:
            length = CHUNKS[0]
        stop = min(first + length, total)
        block_indices = prompt.slots[:, first:stop] // size  # -1 for ordinary tokens
        stop = first + _columns_within(block_indices, block_limit(rows, length, size))

        used = np.unique(block_indices[:, : stop - first])
        chunks.append(PlannedChunk(first, stop, length, used[used >= 0]))
        first = stop
    return chunks


def chunk_length(left: int) -> int:
    """Return the length of the next chunk when `left` positions remain to be read."""
    small, large = CHUNKS
    return large if left > large // 2 else small


def block_size(prompt: Prompt, config: ModelConfig) -> int:
    """Return the number of latents per block, P."""
    return len(prompt.blocks[0]) if prompt.blocks else config.compression.latents_per_window


def block_limit(rows: int, length: int, size: int) -> int:
    """Return the number of blocks passed with every chunk of a length.

    It is enough, per row, for a context that fills the chunk and parts of two others.
    """
    return rows * (length // size + 2)


def _columns_within(block_indices: Int[np.ndarray, "B T"], limit: int) -> int:
    """Count the leading columns that use at most `limit` different blocks."""
    columns = block_indices.shape[1]
    if len(np.unique(block_indices)) <= limit:
        return columns

    used: set[int] = set()
    for column in range(columns):
        indices = block_indices[:, column]
        used.update(indices[indices >= 0].tolist())
        if len(used) > limit:
            return column
    return columns


def make_chunk(prompt: Prompt, planned: PlannedChunk, config: ModelConfig, start: int = 0) -> Chunk:
    """Build the arrays of one planned chunk.

    The prompt must have at least one block (see `with_blocks`). `start` is the number of tokens
    that precede the prompt in the cache.
    """
    size, count = block_size(prompt, config), planned.stop - planned.first
    columns = np.arange(planned.first, planned.first + planned.length, dtype=np.int32)[None]
    real = columns < np.minimum(prompt.lengths, planned.stop)[:, None]
    positions = np.where(real, columns + start, 0)
    last = prompt.lengths - 1 - planned.first

    slots = _pad(prompt.slots[:, planned.first : planned.stop], planned.length, -1)
    if len(planned.blocks):
        local_block = np.searchsorted(planned.blocks, slots // size)
        local_slots = local_block * size + slots % size
        slots = np.where(slots >= 0, local_slots, -1).astype(np.int32)

    # Every chunk of a length has the same number of blocks, so that one program serves them all.
    limit = block_limit(len(prompt.tokens), planned.length, size)
    blocks = [prompt.blocks[index] for index in planned.blocks]
    filler = prompt.blocks[0]
    return Chunk(
        _pad(prompt.tokens[:, planned.first : planned.stop], planned.length, 0),
        slots,
        Places(real.astype(np.int32), positions.astype(np.int32)),
        np.where((last >= 0) & (last < count), last, -1).astype(np.int32),
        np.int32(count),
        (*blocks, *[filler] * (limit - len(blocks))),
    )


def _pad(x: Int[np.ndarray, "B T"], length: int, fill: int) -> Int[np.ndarray, "B T"]:
    padding = ((0, 0), (0, length - x.shape[1]))
    return np.pad(x, padding, constant_values=fill).astype(np.int32)


def with_blocks(prompt: Prompt, config: ModelConfig) -> Prompt:
    """Return the prompt with its blocks on the devices, and a block of zeros if it has none."""
    size = config.compression.latents_per_window
    zeros = np.zeros((size, config.decoder.width), config.dtype)
    blocks = [
        block if isinstance(block, jax.Array) else replicate(block)
        for block in prompt.blocks or [zeros]
    ]
    return replace(prompt, blocks=blocks)


# --- Prompts of one row, for caches that hold their first positions ---


def shared_length(first: Prompt, other: Prompt) -> int:
    """Count the leading positions, tokens and latents, that two one-row prompts share."""
    length = min(int(first.lengths[0]), int(other.lengths[0]))
    same = first.tokens[0, :length] == other.tokens[0, :length]
    same &= _sources(first, length) == _sources(other, length)
    return length if same.all() else int(np.argmin(same))


def _sources(prompt: Prompt, length: int) -> np.ndarray:
    """Return a number for each position [T] that identifies its latent; -1 for tokens."""
    slots = prompt.slots[0, :length].astype(np.int64)
    if not prompt.blocks:
        return slots
    size = len(prompt.blocks[0])
    addresses = np.array([id(block) for block in prompt.blocks])
    return np.where(slots >= 0, addresses[slots // size] * size + slots % size, -1)


def without_first(prompt: Prompt, count: int) -> Prompt:
    """Return a one-row prompt without its first `count` positions."""
    tokens, slots = prompt.tokens[:, count:], prompt.slots[:, count:]
    return Prompt(tokens, slots, prompt.lengths - count, prompt.blocks)


def extended(prompt: Prompt, tokens: np.ndarray) -> Prompt:
    """Return a one-row prompt with tokens [1 T] appended."""
    slots = np.concatenate([prompt.slots, np.full_like(tokens, -1)], axis=1)
    joined = np.concatenate([prompt.tokens, tokens], axis=1)
    return Prompt(joined, slots, prompt.lengths + tokens.shape[1], prompt.blocks)
