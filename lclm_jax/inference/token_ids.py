"""Token ids that come from a caller."""

from typing import Any

import numpy as np

from lclm_jax.errors import TextError


def check_ids(tokens: Any, vocab: int) -> np.ndarray:
    """Return tokens [T] as an array. Raises TextError unless they are ids below `vocab`."""
    ids = np.asarray(tokens)
    if ids.ndim != 1 or (len(ids) and not np.issubdtype(ids.dtype, np.integer)):
        raise TextError(f"expected a list of token ids, got {ids.dtype} of shape {ids.shape}")
    if len(ids) and not 0 <= ids.min() <= ids.max() < vocab:
        bad = ids[(ids < 0) | (ids >= vocab)][0]
        raise TextError(f"expected token ids from 0 to {vocab - 1}, got {bad}")
    return ids
