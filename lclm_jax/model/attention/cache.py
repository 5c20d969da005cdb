"""The keys and values that a decoder keeps of the tokens it has read."""

import flax.struct
import jax

from lclm_jax.batch import Places
from lclm_jax.typing import Array, Float, Int

CACHE_AXES = ("layers", "batch", "kv_heads", "length", "head_dim")  # of keys and values

Stacked = Float[Array, "L B K S H"]
OneLayer = Float[Array, "B K S H"]


@flax.struct.dataclass
class Cache:
    """Keys and values of the tokens that a decoder has read, with room for more.

    They hold all layers as the parameters do, stacked or one by one (`model.unstacked`), or one
    layer alone.
    """

    keys: Stacked | tuple[OneLayer, ...] | OneLayer
    values: Stacked | tuple[OneLayer, ...] | OneLayer
    # Places [B S] of every cached token; segment 0 is a pad.
    places: Places
    # Positions in use; the next tokens are written here.
    end: Int[Array, ""]

    @property
    def length(self) -> int:
        """Number of positions there is room for."""
        return self.places.segments.shape[1]

    @property
    def arrays(self) -> tuple[Array, Array]:
        """Keys and values that are not split by layer."""
        assert not isinstance(self.keys, tuple) and not isinstance(self.values, tuple)
        return self.keys, self.values

    def write(self, keys, values, places: Places, count: Int[Array, ""]) -> "Cache":
        """Return the cache with tokens written after those in use, `count` of which are kept.

        Keys and values are those of the tokens in all layers: [L B K T H], or tuples by layer.
        """
        keys, values = _write((self.keys, self.values), (keys, values), self.end, -2)
        places = _write(self.places, places, self.end, 1)
        return Cache(keys, values, places, self.end + count)


def _write(old, new, start: Array, axis: int):
    """Write the arrays of one tree into those of another, from `start` on."""

    def update(x: Array, y: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(x, y.astype(x.dtype), start, axis)

    return jax.tree.map(update, old, new)
