"""The attention layer."""

import flax.linen as nn

from lclm_jax.batch import Places
from lclm_jax.config import TransformerConfig
from lclm_jax.model.attention.cache import Cache
from lclm_jax.model.attention.dispatch import attend, attend_after
from lclm_jax.model.attention.shards import RowAxes
from lclm_jax.model.layers import (
    RMSNorm,
    matrix_init,
    parameter,
    product,
    residual_init,
    rotate,
)
from lclm_jax.typing import Array, Float, Int, typed


class Attention(nn.Module):
    """Grouped-query attention, with q/k norm (Qwen3) or without (Llama).

    Returns its output and, where there is a cache, the keys and values of x. `layer` is the number
    of this layer in a cache that is stacked.
    """

    config: TransformerConfig
    axes: RowAxes = ("batch", "length")  # of x

    @nn.compact
    @typed
    def __call__(
        self,
        x: Float[Array, "B T D"],
        queries: Places,
        cache: Cache | None = None,
        layer: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B T D"], tuple[Array, Array] | None]:
        c = self.config
        in_axes, kv_axes = ("embed", "heads", "head_dim"), ("embed", "kv_heads", "head_dim")
        kv_shape = (c.width, c.kv_heads, c.head_dim)
        q = parameter(self, "q", (c.width, c.heads, c.head_dim), in_axes, matrix_init(c))
        k = parameter(self, "k", kv_shape, kv_axes, matrix_init(c))
        v = parameter(self, "v", kv_shape, kv_axes, matrix_init(c))
        out_axes = ("heads", "head_dim", "embed")
        o = parameter(self, "o", (c.heads, c.head_dim, c.width), out_axes, residual_init(c))
        q, k, v = product(x, q), product(x, k), product(x, v).swapaxes(1, 2)
        if c.qk_norm:
            q = RMSNorm(c.norm_eps, "head_dim", name="q_norm")(q)
            k = RMSNorm(c.norm_eps, "head_dim", name="k_norm")(k)
        q = rotate(q, queries.positions, c.rope_theta, c.rounded_rope)
        k = rotate(k, queries.positions, c.rope_theta, c.rounded_rope).swapaxes(1, 2)
        if cache is None:
            attended = attend(q, k, v, queries, c.causal, self.axes)
            return product(attended, o, 2), None
        attended = attend_after(q, (k, v), queries, cache, layer, c.causal)
        return product(attended, o, 2), (k, v)
