"""Attention: the one function behind which every backend stands, and the layer that calls it."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lclm_jax.config import TransformerConfig
from lclm_jax.model.layers import RMSNorm, matrix_init, parameter, residual_init, rotate
from lclm_jax.model.masks import Places, attention_mask
from lclm_jax.typing import Array, Float, Int, typed


@flax.struct.dataclass
class Cache:
    """Keys and values of what the decoder has read. Inside the layer scan the leading L of keys and values is gone."""

    keys: Float[Array, "L B K S H"]
    values: Float[Array, "L B K S H"]
    places: Places  # [B S] of every cached token; segment 0 is not written yet
    end: Int[Array, ""]  # where the next tokens are written


@typed
def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    queries: Places,
    keys: Places,
    causal: bool,
) -> Float[Array, "B T N H"]:
    """Softmax attention within segments, scores in float32, scaled by H ** -0.5. A query that sees nothing gets no meaning."""
    mask = attention_mask(queries, keys, causal)[:, None]
    return jax.nn.dot_product_attention(q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask=mask)


class Attention(nn.Module):
    """Grouped-query attention, with q/k norm (Qwen3) or without (Llama).

    Returns its output and the keys and values it attended to.
    """

    config: TransformerConfig

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
        keys, written = queries, None
        if cache is not None:
            k = jax.lax.dynamic_update_slice_in_dim(cache.keys, k.astype(cache.keys.dtype), cache.end, axis=2)
            v = jax.lax.dynamic_update_slice_in_dim(cache.values, v.astype(cache.values.dtype), cache.end, axis=2)
            keys, written = cache.places, (k, v)
        attended = attend(q, k, v, queries, keys, c.causal)
        return jnp.einsum("BTNH,NHD->BTD", attended, o), written
