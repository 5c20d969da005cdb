"""The keys and values that a decoder keeps of what it has read."""

import flax.struct
import jax

from lclm_jax.batch import Places
from lclm_jax.typing import Array, Float, Int

CACHE_AXES = ("layers", "batch", "kv_heads", "length", "head_dim")  # of keys and values


@flax.struct.dataclass
class Cache:
    """Keys and values of what the decoder has read, with room for more.

    They are stacked over layers, tuples of the layers' own arrays where the parameters are
    (`transformer.split_layers`), or those of one layer.
    """

    keys: Float[Array, "L B K S H"] | tuple[Float[Array, "B K S H"], ...] | Float[Array, "B K S H"]
    values: (
        Float[Array, "L B K S H"] | tuple[Float[Array, "B K S H"], ...] | Float[Array, "B K S H"]
    )
    places: Places  # [B S] of every cached token; segment 0 is a pad
    end: Int[Array, ""]  # positions in use; the next tokens are written here

    @property
    def length(self) -> int:
        """Positions there is room for."""
        return self.places.segments.shape[1]

    def write(self, keys, values, places: Places, count: Int[Array, ""]) -> "Cache":
        """The cache with tokens written after those in use, `count` of which are kept.

        Keys and values are the layers' own of these tokens: [L B K T H], or tuples.
        """
        keys, values = _put((self.keys, self.values), (keys, values), self.end, -2)
        places = _put(self.places, places, self.end, 1)
        return Cache(keys, values, places, self.end + count)


def _put(old, new, start: Array, axis: int):
    """Writes trees of arrays into others at `start`."""
    update = jax.lax.dynamic_update_slice_in_dim
    return jax.tree.map(lambda x, y: update(x, y.astype(x.dtype), start, axis), old, new)
