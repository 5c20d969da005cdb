"""Masks of the keys that a query may read."""

from lclm_jax.batch import Places
from lclm_jax.typing import Array, Bool, typed


@typed
def attention_mask(queries: Places, keys: Places, causal: bool) -> Bool[Array, "B T S"]:
    """Return True where a query may read a key: in its segment and, if causal, not after it.

    For two packed examples and a pad (segments 1 1 1 2 2 0, positions 0 1 2 0 1 0), causal:

        1 0 0 0 0 0
        1 1 0 0 0 0
        1 1 1 0 0 0
        0 0 0 1 0 0
        0 0 0 1 1 0
        0 0 0 0 0 0
    """
    same = queries.segments[:, :, None] == keys.segments[:, None, :]
    mask = same & (keys.segments[:, None, :] > 0)
    if causal:
        mask &= keys.positions[:, None, :] <= queries.positions[:, :, None]
    return mask
