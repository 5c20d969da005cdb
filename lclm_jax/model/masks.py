"""Who sees whom: a token's place, and the mask that follows from two sets of places."""

import flax.struct

from lclm_jax.typing import Array, Bool, Int, typed


@flax.struct.dataclass
class Places:
    """Where each token stands: the segment it belongs to (0: padding) and its position in it."""

    segments: Int[Array, "B T"]
    positions: Int[Array, "B T"]


@typed
def attention_mask(queries: Places, keys: Places, causal: bool) -> Bool[Array, "B T S"]:
    """True where a query may read a key: same segment and, if causal, not a later position.

    Two packed examples and a pad (segments 1 1 1 2 2 0, positions 0 1 2 0 1 0), causal:

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
