"""Compression of contexts of any length: windows through the encoder, in passes of a few sizes.

Passes are dispatched as windows fill, and nothing waits for the device.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import jax.numpy as jnp
import numpy as np

from lclm_jax.batch import Places, Windows, empty_windows
from lclm_jax.compilation import serving_program
from lclm_jax.config import ModelConfig
from lclm_jax.data.loading import pack_pieces, write_piece
from lclm_jax.data.loading.packing import PieceOffset
from lclm_jax.data.records import Context, ContextPiece, cut_windows
from lclm_jax.distributed.sharding import constrain, splits
from lclm_jax.inference.device_queue import DeviceQueue
from lclm_jax.inference.latents import BlockSlice, Latents
from lclm_jax.inference.token_ids import check_ids
from lclm_jax.model.lclm import LCLM, apply
from lclm_jax.typing import Array, Float, Int, Params

WINDOWS_AT_ONCE = 16  # windows per encoder pass; bounds device memory for texts of any length
PASSES = (WINDOWS_AT_ONCE, 4, 1)  # windows per pass; the last windows of a text use small passes


@dataclass(frozen=True)
class PlacedPiece:
    """A piece of a context with its first position and its first latent in a window."""

    piece: ContextPiece
    position: int = 0
    latent: int = 0


@dataclass(frozen=True)
class Compressor:
    """The encoder and the adapter of a model, on the devices of `queue`.

    `marker` is the token that eos pooling appends to windows.
    """

    weights: Params
    config: ModelConfig
    queue: DeviceQueue
    marker: int

    def cut(self, parts: Iterable[np.ndarray], ratio: int | None) -> Iterator[ContextPiece]:
        """Cut a context, whose tokens arrive in parts, into windows.

        Raises TextError for ids that the encoder does not have.
        """
        known = (check_ids(part, self.config.encoder.vocab) for part in parts)
        return cut_windows(known, self.config, ratio, self.marker)

    def compress(
        self, parts: Iterable[np.ndarray], ratio: int | None, passes: Sequence[int] = PASSES
    ) -> Latents:
        """Compress a context whose tokens arrive in parts; windows share blocks where they fit.

        `passes` are those of `encode_windows`.
        """
        token_counts, latent_counts = [], []

        def counted() -> Iterator[np.ndarray]:
            for part in parts:
                token_counts.append(len(part))
                yield part

        def pieces() -> Iterator[ContextPiece]:
            for piece in self.cut(counted(), ratio):
                latent_counts.append(piece.latents)
                yield piece

        blocks = self.encode(pieces(), passes)
        if self.config.adapter.attention:
            blocks = self.project(list(blocks), latent_counts)
        slices = (
            BlockSlice(block, 0, count) for block, count in zip(blocks, latent_counts, strict=True)
        )
        return Latents(list(self.share_blocks(slices)), sum(token_counts))

    def compress_all(self, contexts: Sequence[Context]) -> list[Latents]:
        """Compress several contexts; short ones share windows.

        With attention in the adapter, which joins the windows of one context, they are compressed
        one by one.
        """
        if self.config.adapter.attention or len(contexts) == 1:
            return [
                self.compress([np.asarray(context.tokens)], context.ratio) for context in contexts
            ]

        cuts = [list(self.cut([np.asarray(context.tokens)], context.ratio)) for context in contexts]
        pieces = [piece for cut in cuts for piece in cut]
        sizes = [(len(piece.tokens), piece.latents) for piece in pieces]
        offsets = pack_pieces(sizes, self.config)
        last_window = max(offsets, default=(-1,))[0]
        windows: list[list[PlacedPiece]] = [[] for _ in range(1 + last_window)]
        for piece, (window, position, latent) in zip(pieces, offsets, strict=True):
            windows[window].append(PlacedPiece(piece, position, latent))

        blocks = list(self.encode_windows(windows))
        slices = self.share_blocks(
            BlockSlice(blocks[window], latent, piece.latents)
            for piece, (window, _, latent) in zip(pieces, offsets, strict=True)
        )
        return [
            Latents([next(slices) for _ in cut], len(context.tokens))
            for context, cut in zip(contexts, cuts, strict=True)
        ]

    def encode(
        self, pieces: Iterable[ContextPiece], passes: Sequence[int] = PASSES
    ) -> Iterator[Array]:
        """Encode pieces, each in a window of its own; see `encode_windows`."""
        return self.encode_windows(([PlacedPiece(piece)] for piece in pieces), passes)

    def encode_windows(
        self, windows: Iterable[list[PlacedPiece]], passes: Sequence[int] = PASSES
    ) -> Iterator[Array]:
        """Yield the block [P D] of each window; a pass is dispatched when its windows are full.

        `passes` are the numbers of windows that a pass may have, the largest first. The values of
        a block depend, by rounding, on the size of its pass. With attention in the adapter, blocks
        are pooled states [P I] for `project`.
        """
        with self.queue.turn():
            # A pass has a multiple of the parts into which the mesh splits windows.
            parts = splits("windows")
        sizes = sorted({-(-size // parts) * parts for size in passes}, reverse=True)
        windows = iter(windows)
        while waiting := list(islice(windows, sizes[0])):
            while waiting:
                size = next((size for size in sizes if size <= len(waiting)), sizes[-1])
                yield from self._encode_pass(waiting[:size], size)
                waiting = waiting[size:]

    def _encode_pass(self, windows: Sequence[list[PlacedPiece]], size: int) -> Sequence[Array]:
        """Run one encoder pass over at most `size` windows, padded to `size`."""
        latents = self.config.compression.latents_per_window
        arrays = empty_windows(1, size, self.config.window_length, latents)
        for window, pieces in enumerate(windows):
            for segment, placed in enumerate(pieces, start=1):
                offset = PieceOffset(window, placed.position, placed.latent)
                write_piece(arrays, 0, offset, placed.piece, segment, segment)
        with self.queue.turn():
            return encode_windows(self.weights, arrays, self.config)[: len(windows)]

    def project(self, blocks: list[Array], counts: Sequence[int]) -> list[Array]:
        """Return the latents of one context whose windows are encoded.

        `counts` are the latents in use per block. Only an adapter with attention has work left,
        which joins the blocks; their number is padded to a power of two, to bound the number of
        compiled programs.
        """
        if not self.config.adapter.attention:
            return blocks
        size, used = len(blocks[0]), len(blocks)
        padded = tuple(pad_to_power_of_two(blocks))
        inside = np.arange(size) < np.array([*counts, *[0] * (len(padded) - used)])[:, None]
        positions = np.where(inside, np.cumsum(inside).reshape(inside.shape) - 1, 0)
        places = Places(*(x.reshape(1, -1).astype(np.int32) for x in (inside, positions)))
        with self.queue.turn():
            return list(project_blocks(self.weights, padded, places, self.config)[:used])

    def share_blocks(self, slices: Iterable[BlockSlice]) -> Iterator[BlockSlice]:
        """Yield the same latents from shared blocks, as many consecutive slices in each as fit.

        A block has room for a window at the smallest ratio; at a larger one, a window would leave
        most of it empty, and the decoder would read fewer latents with every chunk.
        """
        group: list[BlockSlice] = []
        for part in slices:
            if group and sum(other.count for other in group) + part.count > len(part.block):
                yield from self._join(group)
                group = []
            group.append(part)
        yield from self._join(group)

    def _join(self, slices: Sequence[BlockSlice]) -> Sequence[BlockSlice]:
        """Return slices as parts of one block, unless they are already."""
        blocks = {id(part.block): part.block for part in slices}
        if len(blocks) <= 1:
            return slices
        size, numbers = len(slices[0].block), {key: number for number, key in enumerate(blocks)}
        rows = np.zeros(size, np.int32)
        joined_slices, first = [], 0
        for part in slices:
            start = numbers[id(part.block)] * size + part.first
            rows[first : first + part.count] = start + np.arange(part.count)
            joined_slices.append((first, part.count))
            first += part.count
        with self.queue.turn():
            joined = join_blocks(tuple(pad_to_power_of_two(list(blocks.values()))), rows)
        return [BlockSlice(joined, *position) for position in joined_slices]


def pass_sizes(windows_at_once: int) -> tuple[int, ...]:
    """Return the numbers of windows of passes that have at most `windows_at_once`.

    >>> pass_sizes(128)
    (128, 16, 4, 1)
    """
    return (windows_at_once, *(size for size in PASSES if size < windows_at_once))


def pad_to_power_of_two(blocks: Sequence[Array]) -> Sequence[Array]:
    """Repeat the first block until their number is a power of two, to bound compiled programs."""
    padding = (1 << (len(blocks) - 1).bit_length()) - len(blocks)
    return [*blocks, *[blocks[0]] * padding]


@serving_program()
def join_blocks(
    blocks: tuple[Float[Array, "P D"], ...], rows: Int[Array, "P"]
) -> Float[Array, "P D"]:
    """Return rows of the concatenated blocks as one block, replicated on every device."""
    return constrain(jnp.concatenate(blocks)[rows], None, None)


@serving_program(static_argnames=("config",))
def encode_windows(
    params: Params, windows: Windows, config: ModelConfig
) -> tuple[Float[Array, "P D"], ...]:
    """Encode each window of one row [1 C W] to a block of latents.

    If the adapter has attention, the blocks contain pooled states [P I] for `project_blocks`.
    """

    def encode_and_pool(model: LCLM, windows: Windows):
        return model.pool(model.encode(windows), windows)

    method = encode_and_pool if config.adapter.attention else LCLM.compress
    vectors = apply(config, params, windows, method=method)[0]
    return _as_blocks(vectors, windows.tokens.shape[1])


@serving_program(static_argnames=("config",))
def project_blocks(
    params: Params, blocks: tuple[Float[Array, "P I"], ...], places: Places, config: ModelConfig
) -> tuple[Float[Array, "P D"], ...]:
    """Project blocks of pooled states to blocks of latents; `places` [1 M] marks those in use."""
    vectors = apply(config, params, jnp.concatenate(blocks)[None], places, method=LCLM.project)[0]
    return _as_blocks(vectors, len(blocks))


def _as_blocks(vectors: Float[Array, "M D"], count: int) -> tuple[Float[Array, "P D"], ...]:
    """Split vectors into `count` blocks, each replicated on every device."""
    return tuple(constrain(block, None, None) for block in jnp.split(vectors, count))
