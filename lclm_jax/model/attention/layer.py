"""The attention layer."""

import flax.linen as nn

from lclm_jax.batch import Places
from lclm_jax.config import TransformerConfig
from lclm_jax.model.attention.cache import Cache
from lclm_jax.model.attention.dispatch import attend, attend_after
from lclm_jax.model.attention.shards import RowAxes
from lclm_jax.model.layers import (
    RMSNorm,
    einsum,
    matrix_init,
    parameter,
    residual_init,
    rotate,
)
from lclm_jax.typing import Array, Float, Int, typed

KeysAndValues = tuple[Float[Array, "B K T H"], Float[Array, "B K T H"]]


class Attention(nn.Module):
    """Grouped-query attention, with norms of queries and keys (Qwen3) or without (Llama)."""

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
    ) -> tuple[Float[Array, "B T D"], KeysAndValues | None]:
        """Return what `x` reads of itself and of a cache and, given one, its keys and values.

        `layer` is the number of this layer in a cache that holds all layers.
        """
        c = self.config
        q_matrix, k_matrix, v_matrix, out_matrix = self._matrices()

        q = einsum("BTD,DNH->BTNH", x, q_matrix)
        k = einsum("BTD,DKH->BTKH", x, k_matrix)
        v = einsum("BTD,DKH->BTKH", x, v_matrix).swapaxes(1, 2)
        if c.qk_norm:
            q = RMSNorm(c.norm_eps, "head_dim", name="q_norm")(q)
            k = RMSNorm(c.norm_eps, "head_dim", name="k_norm")(k)
        q = rotate(q, queries.positions, c.rope_theta, c.rounded_rope)
        k = rotate(k, queries.positions, c.rope_theta, c.rounded_rope).swapaxes(1, 2)

        if cache is None:
            attended, own = attend(q, k, v, queries, c.causal, self.axes), None
        else:
            own = (k, v)
            attended = attend_after(q, own, queries, cache, layer, c.causal)
        return einsum("BTNH,NHD->BTD", attended, out_matrix), own

    def _matrices(self) -> tuple[Array, Array, Array, Array]:
        """Return the parameters of queries, keys, values and outputs."""
        c = self.config
        q_axes, kv_axes = ("embed", "heads", "head_dim"), ("embed", "kv_heads", "head_dim")
        kv_shape = (c.width, c.kv_heads, c.head_dim)
        q = parameter(self, "q", (c.width, c.heads, c.head_dim), q_axes, matrix_init(c))
        k = parameter(self, "k", kv_shape, kv_axes, matrix_init(c))
        v = parameter(self, "v", kv_shape, kv_axes, matrix_init(c))

        out_axes = ("heads", "head_dim", "embed")
        out = parameter(self, "o", (c.heads, c.head_dim, c.width), out_axes, residual_init(c))
        return q, k, v, out
