"""The attention layer, and the keys and values a decoder keeps."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lclm_jax.config import TransformerConfig
from lclm_jax.model.attend import RowAxes, attend
from lclm_jax.model.layers import RMSNorm, matrix_init, parameter, residual_init, rotate
from lclm_jax.model.masks import Places
from lclm_jax.sharding import constrain
from lclm_jax.typing import Array, Float, Int, typed

CACHE_AXES = ("layers", "batch", "kv_heads", "length", "head_dim")  # of keys and values


@flax.struct.dataclass
class Cache:
    """Keys and values of what the decoder has read, or only room for them.

    Inside the layer scan the leading L of keys and values is gone.
    """

    keys: Float[Array, "L B K S H"] | None  # None before anything is read
    values: Float[Array, "L B K S H"] | None
    places: Places  # [B S] of every cached token; segment 0 is not written yet
    end: Int[Array, ""]  # where the next tokens are written


class Attention(nn.Module):
    """Grouped-query attention, with q/k norm (Qwen3) or without (Llama).

    Returns its output and the keys and values it attended to.
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
        q, k = jnp.einsum("BTD,DNH->BTNH", x, q), jnp.einsum("BTD,DKH->BTKH", x, k)
        if c.qk_norm:
            q = RMSNorm(c.norm_eps, "head_dim", name="q_norm")(q)
            k = RMSNorm(c.norm_eps, "head_dim", name="k_norm")(k)
        q = rotate(q, queries.positions, c.rope_theta, c.rounded_rope)
        k = rotate(k, queries.positions, c.rope_theta, c.rounded_rope).swapaxes(1, 2)
        v = jnp.einsum("BTD,DKH->BKTH", x, v)
        if cache is None:
            attended, written = attend(q, k, v, queries, None, c.causal, self.axes), None
        elif cache.keys is None or cache.values is None:
            attended, written = attend(q, k, v, queries, None, c.causal, self.axes), (_with_room(k, cache), _with_room(v, cache))
        else:
            k = jax.lax.dynamic_update_slice_in_dim(cache.keys, k.astype(cache.keys.dtype), cache.end, axis=2)
            v = jax.lax.dynamic_update_slice_in_dim(cache.values, v.astype(cache.values.dtype), cache.end, axis=2)
            attended, written = attend(q, k, v, queries, cache.places, c.causal, self.axes), (k, v)
        if written is not None:
            written = jax.tree.map(lambda x: constrain(x, *CACHE_AXES[1:]), written)
        return jnp.einsum("BTNH,NHD->BTD", attended, o), written


def _with_room(read: Float[Array, "B K T H"], cache: Cache) -> Float[Array, "B K S H"]:
    return jnp.pad(read, ((0, 0), (0, 0), (0, cache.places.segments.shape[1] - read.shape[2]), (0, 0)))
