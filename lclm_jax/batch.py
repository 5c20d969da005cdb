"""The contract between data and model: the arrays that the input pipeline hands over.

Every shape is static. Segments are numbered from 1; segment 0 is padding.
"""

import flax.struct
import numpy as np

from lclm_jax.typing import Array, Float, Int

PADDING = 0  # segment of a position without a token
NO_LATENT = -1  # group of a token that no latent stands for, slot of an ordinary token


@flax.struct.dataclass
class Places:
    """The segment that each token belongs to, and its position in that segment.

    Tokens attend to each other only within a segment.
    """

    segments: Int[Array, "B T"]
    positions: Int[Array, "B T"]


@flax.struct.dataclass
class Windows:
    """The encoder's input: B rows of C windows of W tokens.

    A window may hold pieces of several contexts.
    """

    tokens: Int[Array, "B C W"]
    # Piece of a context that a token belongs to, counted per window; 0 is padding.
    segments: Int[Array, "B C W"]
    # Counted from 0 in every piece.
    positions: Int[Array, "B C W"]
    # Latent of its window that a token is pooled into, in [0, P); -1 is none.
    groups: Int[Array, "B C W"]
    # Context that a latent belongs to, counted per row; 0 is no latent.
    latent_segments: Int[Array, "B C P"]
    # Counted from 0 in every context.
    latent_positions: Int[Array, "B C P"]


@flax.struct.dataclass
class Batch:
    """B packed rows of T decoder positions, and the windows whose latents fill their slots."""

    # The placeholder token at a slot.
    tokens: Int[Array, "B T"]
    # Token to predict from a position.
    targets: Int[Array, "B T"]
    # Weight of a position's target in the loss.
    weights: Float[Array, "B T"]
    # Example that a position belongs to, counted per row; 0 is padding.
    segments: Int[Array, "B T"]
    # Counted from 0 in every example.
    positions: Int[Array, "B T"]
    # Latent of the row that fills a position, window * P + latent; -1 is an ordinary token.
    slots: Int[Array, "B T"]
    # Stream that an example came from, for the losses by stream.
    streams: Int[Array, "B T"]
    windows: Windows


def empty_windows(rows: int, windows: int, window_length: int, window_latents: int) -> Windows:
    """Return windows of padding as numpy arrays, to be written into."""
    by_token = (rows, windows, window_length)
    by_latent = (rows, windows, window_latents)
    return Windows(
        tokens=_full(by_token),
        segments=_full(by_token, PADDING),
        positions=_full(by_token),
        groups=_full(by_token, NO_LATENT),
        latent_segments=_full(by_latent, PADDING),
        latent_positions=_full(by_latent),
    )


def empty_batch(rows: int, positions: int, windows: Windows) -> Batch:
    """Return decoder positions of padding as numpy arrays, to be written into, with `windows`."""
    shape = (rows, positions)
    return Batch(
        tokens=_full(shape),
        targets=_full(shape),
        weights=np.zeros(shape, np.float32),
        segments=_full(shape, PADDING),
        positions=_full(shape),
        slots=_full(shape, NO_LATENT),
        streams=_full(shape),
        windows=windows,
    )


def _full(shape: tuple[int, ...], value: int = 0) -> np.ndarray:
    return np.full(shape, value, np.int32)
