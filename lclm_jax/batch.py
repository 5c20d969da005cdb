"""The data contract: what the input pipeline hands to the model. Every shape is static."""

import flax.struct
import numpy as np

from lclm_jax.typing import Array, Float, Int


@flax.struct.dataclass
class Windows:
    """What the encoder reads: B rows of C windows of W positions. A window may hold pieces of several contexts."""

    tokens: Int[Array, "B C W"]
    segments: Int[
        Array, "B C W"
    ]  # piece of context a token belongs to, counted per window; 0 is padding
    positions: Int[Array, "B C W"]  # from 0 in every piece
    groups: Int[
        Array, "B C W"
    ]  # latent of this window the token is pooled into, in [0, P); -1 is none
    latent_segments: Int[
        Array, "B C P"
    ]  # context a latent belongs to, counted per row; 0 is no latent
    latent_positions: Int[Array, "B C P"]  # from 0 in every context


@flax.struct.dataclass
class Batch:
    """B packed rows of T decoder positions, and the windows whose latents fill their slots."""

    tokens: Int[Array, "B T"]  # the memory placeholder at a slot
    targets: Int[Array, "B T"]  # token to predict from this position
    weights: Float[Array, "B T"]  # of each target in the loss
    segments: Int[Array, "B T"]  # example a position belongs to, counted per row; 0 is padding
    positions: Int[Array, "B T"]  # from 0 in every example
    slots: Int[
        Array, "B T"
    ]  # latent of this row that fills the position, c * P + p; -1 is an ordinary token
    streams: Int[Array, "B T"]  # stream an example came from, for per-stream loss
    windows: Windows


def empty_windows(rows: int, windows: int, window_length: int, window_latents: int) -> Windows:
    """Windows of padding, as numpy arrays to be written into."""
    read, latents = (rows, windows, window_length), (rows, windows, window_latents)
    zeros = [np.zeros(shape, np.int32) for shape in (read, read, read, latents, latents)]
    return Windows(*zeros[:3], np.full(read, -1, np.int32), *zeros[3:])


def empty_batch(rows: int, positions: int, windows: Windows) -> Batch:
    """Decoder positions of padding, as numpy arrays to be written into, beside these windows."""
    decoder = (rows, positions)

    def fill(shape: tuple[int, ...], value: int = 0) -> np.ndarray:
        return np.full(shape, value, np.int32)

    return Batch(
        tokens=fill(decoder),
        targets=fill(decoder),
        weights=np.zeros(decoder, np.float32),
        segments=fill(decoder),
        positions=fill(decoder),
        slots=fill(decoder, -1),
        streams=fill(decoder),
        windows=windows,
    )
