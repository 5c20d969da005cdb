"""The attention layer, and the keys and values a decoder keeps."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lclm_jax.config import TransformerConfig
from lclm_jax.model.attend import RowAxes, attend, attend_after
from lclm_jax.model.layers import RMSNorm, matrix_init, parameter, product, residual_init, rotate
from lclm_jax.model.masks import Places
from lclm_jax.sharding import constrain
from lclm_jax.typing import Array, Float, Int, typed

CACHE_AXES = ("layers", "batch", "kv_heads", "length", "head_dim")  # of keys and values


@flax.struct.dataclass
class Cache:
    """Keys and values of what the decoder has read, or only room for them.

    Inside the layer scan the leading L of keys and values is gone; after `unstack` they are tuples of L arrays without it.
    """

    keys: Float[Array, "L B K S H"] | None  # None before anything is read
    values: Float[Array, "L B K S H"] | None
    places: Places  # [B S] of every cached token; segment 0 is not written yet
    end: Int[Array, ""]  # where the next tokens are written

    def layer(self, keys: Float[Array, "B K T H"], values: Float[Array, "B K T H"]) -> tuple[Array, Array]:
        """What one layer hands on of the tokens just read: their part of the cache, the whole of it where there was none."""
        if self.keys is not None:
            return keys, values
        room = self.places.segments.shape[1] - keys.shape[2]
        return _widen(keys, room), _widen(values, room)

    def write(self, keys: Array, values: Array, places: Places) -> "Cache":
        """The cache with the tokens just read in it; keys and values are what its layers handed on, stacked."""
        if self.keys is not None and self.values is not None:
            keys, values = _put((self.keys, self.values), (keys, values), self.end, -2)
        count = places.segments.shape[1]
        places = _put(self.places, places, self.end, 1)
        return Cache(keys, values, places, self.end + count)


def _widen(read: Array, room: int) -> Array:
    return constrain(jnp.pad(read, ((0, 0), (0, 0), (0, room), (0, 0))), *CACHE_AXES[1:])


def _put(old, new, start: Array, axis: int):
    """Trees of arrays."""
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y.astype(x.dtype), start, axis), old, new)


class Attention(nn.Module):
    """Grouped-query attention, with q/k norm (Qwen3) or without (Llama).

    Returns its output and, for a cache, the keys and values of x.
    """

    config: TransformerConfig
    axes: RowAxes = ("batch", "length")  # of x

    @nn.compact
    @typed
    def __call__(
        self, x: Float[Array, "B T D"], queries: Places, cache: Cache | None = None
    ) -> tuple[Float[Array, "B T D"], tuple[Array, Array] | None]:
        c = self.config
        q = parameter(self, "q", (c.width, c.heads, c.head_dim), ("embed", "heads", "head_dim"), matrix_init(c))
        k = parameter(self, "k", (c.width, c.kv_heads, c.head_dim), ("embed", "kv_heads", "head_dim"), matrix_init(c))
        v = parameter(self, "v", (c.width, c.kv_heads, c.head_dim), ("embed", "kv_heads", "head_dim"), matrix_init(c))
        o = parameter(self, "o", (c.heads, c.head_dim, c.width), ("heads", "head_dim", "embed"), residual_init(c))
        q, k, v = product(x, q), product(x, k), product(x, v).swapaxes(1, 2)
        if c.qk_norm:
            q = RMSNorm(c.norm_eps, "head_dim", name="q_norm")(q)
            k = RMSNorm(c.norm_eps, "head_dim", name="k_norm")(k)
        q = rotate(q, queries.positions, c.rope_theta, c.rounded_rope)
        k = rotate(k, queries.positions, c.rope_theta, c.rounded_rope).swapaxes(1, 2)
        if cache is None or cache.keys is None or cache.values is None:
            attended = attend(q, k, v, queries, c.causal, self.axes)
        else:
            attended = attend_after(q, (k, v), queries, (cache.keys, cache.values), cache.places, c.causal)
        return product(attended, o, 2), None if cache is None else cache.layer(k, v)
