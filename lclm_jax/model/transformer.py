"""The Qwen3 transformer: one stack of layers that serves both towers.

Layers are stacked, scanned over and rematerialised. Where a model only reads on a CPU they lie one
by one (`split_layers`): there a scan copies the parameters of each layer before it multiplies.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from lclm_jax.batch import Places
from lclm_jax.config import TransformerConfig
from lclm_jax.distributed.sharding import constrain, splits
from lclm_jax.model.attention import CACHE_AXES, SAVED, Attention, Cache, RowAxes
from lclm_jax.model.attention.tpu import TILE
from lclm_jax.model.layers import MLP, RMSNorm, matrix_init, parameter
from lclm_jax.typing import Array, Float, Int, Params, typed

REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names(SAVED),
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(SAVED),
    ),
}


class Block(nn.Module):
    """One layer, in the shape `nn.scan` wants: the residual stream goes through, the cache and the
    number of this layer in it come in, the keys and values of the tokens just read come out."""

    config: TransformerConfig
    axes: RowAxes = ("batch", "length")  # of x

    @nn.compact
    def __call__(self, x, queries: Places, cache: Cache | None, layer: Array | None):
        c = self.config
        x = constrain(x, *self.axes, "activation")
        normed = RMSNorm(c.norm_eps, name="attention_norm")(x)
        attended, own = Attention(c, self.axes, name="attention")(normed, queries, cache, layer)
        x = x + attended
        x = x + MLP(c, name="mlp")(RMSNorm(c.norm_eps, name="mlp_norm")(x))
        return x, own


def layer_stack(
    config: TransformerConfig,
    remat: str,
    name: str | None = None,
    axes: RowAxes = ("batch", "length"),
) -> nn.Module:
    """`config.layers` blocks, their parameters stacked along a first axis; called like a Block."""
    block = Block
    if remat != "none":
        block = nn.remat(Block, prevent_cse=False, policy=REMAT_POLICIES[remat])
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=config.layers,
        in_axes=(nn.broadcast, nn.broadcast, 0),
        metadata_params={nn.PARTITION_NAME: "layers"},
    )(config, axes, name=name)


class Transformer(nn.Module):
    """Embedding, layers and final norm.

    Everything runs in the dtype of the parameters that `apply` is given: cast them once, outside.
    """

    config: TransformerConfig
    remat: str = "none"
    axes: RowAxes = ("batch", "length")  # of the rows it reads and of their positions

    def setup(self):
        c = self.config
        axes, init = ("vocab", "table"), matrix_init(c)
        self.table = parameter(self, "table", (c.vocab, c.width), axes, init)
        self.layers = layer_stack(c, self.remat, axes=self.axes)
        self.norm = RMSNorm(c.norm_eps)

    @typed
    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        return constrain(jnp.take(self.table, tokens, axis=0), *self.axes, "activation")

    @typed
    def __call__(
        self,
        x: Float[Array, "B T D"],
        queries: Places,
        cache: Cache | None = None,
        count: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        """Hidden states after the final norm and, given a cache, the cache with these tokens in it.

        Of the tokens the first `count` are kept in the cache, by default all.
        """
        if isinstance(self._params, tuple):
            x, own = self._one_by_one(x, queries, cache)
        else:
            layers = None if cache is None else jnp.arange(self.config.layers)
            x, own = self.layers(x, queries, cache, layers)
        x = self.norm(x)
        if cache is None:
            return x, None
        return x, cache.write(*own, queries, jnp.int32(x.shape[1]) if count is None else count)

    @property
    def _params(self) -> Params | tuple[Params, ...] | None:
        """The parameters of the layers: stacked, one by one, or None before they are made."""
        return self.get_variable("params", "layers")

    def _one_by_one(self, x, queries: Places, cache: Cache | None):
        """Applies the layers in a loop, for parameters that are not stacked."""
        block = Block(self.config, self.axes, parent=None)
        # One function for all layers: it is traced and lowered once.
        read = jax.jit(lambda params, *inputs: block.apply({"params": params}, *inputs))
        owns = []
        for i, params in enumerate(self._params):
            layer = cache and cache.replace(keys=cache.keys[i], values=cache.values[i])
            x, own = read(params, x, queries, layer, None)
            owns.append(own)
        if cache is None:
            return x, None
        # Make what is written depend on the hidden state; otherwise XLA copies the whole cache for
        # every token (it drops an optimization_barrier).
        nothing = (x[:, :1, :1, None] * 0).astype(owns[0][0].dtype)
        return x, jax.tree.map(lambda written: written + nothing, tuple(zip(*owns, strict=True)))


@partial(jax.jit, static_argnames=("layers",))
def split_layers(stacked: Params, layers: int) -> tuple[Params, ...]:
    """The parameters of each layer, [L ...] -> L times [...]."""
    return tuple(jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(layers))


@partial(jax.jit, static_argnames=("config", "dtype", "rows", "length", "stacked"))
def empty_cache(
    config: TransformerConfig, dtype: str, rows: int, length: int, stacked: bool
) -> Cache:
    """Room for at least `length` positions in each of `rows` rows."""
    length = cache_length(length)
    shape = (rows, config.kv_heads, length, config.head_dim)

    def zeros() -> Array:
        if stacked:
            return constrain(jnp.zeros((config.layers, *shape), dtype), *CACHE_AXES)
        return constrain(jnp.zeros(shape, dtype), *CACHE_AXES[1:])

    def room():
        return zeros() if stacked else tuple(zeros() for _ in range(config.layers))

    nowhere = jnp.zeros((rows, length), jnp.int32)
    return Cache(room(), room(), Places(nowhere, nowhere), jnp.int32(0))


def cache_length(length: int) -> int:
    """Positions of a cache with room for so many: every part of a sequence has whole tiles, which
    chips read without a copy."""
    unit = TILE * splits("length")
    return -(-length // unit) * unit
