"""Latents of one window as the bytes of an object, and the key under which they are kept."""

import hashlib
from dataclasses import dataclass
from typing import Literal

import ml_dtypes
import numpy as np

from lclm_jax.data.records import ContextPiece
from lclm_jax.inference.store.objects import StoreError, pack_arrays, unpack_arrays

Precision = Literal["float32", "bfloat16", "int8"]
FLOATS = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
INT8_LEVELS = 127


@dataclass(frozen=True)
class StoredWindow:
    """The latents of a window as they are kept.

    Attributes:
        latents: [p, D], of float32; those that were encoded, rounded to the stored precision.
        squared_error: sum over all numbers of what rounding changed, squared.
        squares: sum of the squares of the numbers before rounding.
    """

    latents: np.ndarray
    squared_error: float
    squares: float


def window_key(piece: ContextPiece, model_id: str, precision: Precision) -> str:
    """Return the key of a window: a hash of all that its latents depend on."""
    digest = hashlib.sha256(f"{precision} {len(piece.tokens)}\n".encode())
    digest.update(piece.tokens.astype("<i4").tobytes())
    digest.update(piece.groups.astype("<i4").tobytes())
    name = digest.hexdigest()
    return f"windows/{model_id}/{name[:3]}/{name[3:]}"


def pack_window(latents: np.ndarray, precision: Precision) -> bytes:
    """Return latents [p, D] as the bytes of an object.

    In int8, each latent is scaled so that its largest number is 127.
    """
    exact = latents.astype(np.float32)
    if precision == "int8":
        largest = np.abs(exact).max(axis=1, keepdims=True)
        scales = (np.where(largest > 0, largest, 1) / INT8_LEVELS).astype(np.float32)
        stored = {"latents": np.rint(exact / scales).astype(np.int8), "scales": scales}
    else:
        stored = {"latents": exact.astype(FLOATS[precision])}
    error = exact.astype(np.float64) - _unscaled(stored)
    sums = np.array([np.sum(error**2), np.sum(exact.astype(np.float64) ** 2)])
    return pack_arrays({**stored, "squares": sums})


def unpack_window(value: bytes) -> StoredWindow:
    """Return the window of `pack_window`. Raises StoreError for damaged bytes."""
    arrays = unpack_arrays(value)
    if not {"latents", "squares"} <= set(arrays) or arrays["latents"].ndim != 2:
        raise StoreError(f"expected the latents of a window, got arrays {sorted(arrays)}")
    squared_error, squares = arrays["squares"].tolist()
    return StoredWindow(_unscaled(arrays), squared_error, squares)


def _unscaled(arrays: dict[str, np.ndarray]) -> np.ndarray:
    latents = arrays["latents"].astype(np.float32)
    return latents * arrays["scales"] if "scales" in arrays else latents
