"""The Qwen3 transformer: one stack of layers that serves both towers.

Layers are stacked, scanned over and rematerialised.
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
from lclm_jax.model.unstacked import is_unstacked, read_layers
from lclm_jax.typing import Array, Float, Int, typed

REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names(SAVED),
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(SAVED),
    ),
}


class Block(nn.Module):
    """One layer, with the arguments and results that `nn.scan` wants.

    The residual stream goes through. The cache and the number of this layer in it come in; the keys
    and values of the tokens just read come out.
    """

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
    """Return `config.layers` blocks that are called like one.

    Their parameters are stacked along a first axis.
    """
    block = Block
    if remat != "none":
        block = nn.remat(Block, prevent_cse=False, policy=REMAT_POLICIES[remat])
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=config.layers,
        in_axes=(nn.broadcast, nn.broadcast, 0),  # pyright: ignore[reportArgumentType]  # any tree
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
        """Return the rows of the table for tokens."""
        return constrain(jnp.take(self.table, tokens, axis=0), *self.axes, "activation")

    @typed
    def __call__(
        self,
        x: Float[Array, "B T D"],
        queries: Places,
        cache: Cache | None = None,
        count: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        """Return the hidden states after the final norm and, given a cache, the cache after them.

        The cache keeps the first `count` tokens, by default all.
        """
        params = self.get_variable("params", "layers")
        if is_unstacked(params):
            block = Block(self.config, self.axes, parent=None)
            x, own = read_layers(block, params, x, queries, cache)
        else:
            layers = None if cache is None else jnp.arange(self.config.layers)
            x, own = self.layers(x, queries, cache, layers)
        x = self.norm(x)
        if cache is None:
            return x, None
        assert own is not None
        keys, values = own
        kept_count = jnp.int32(x.shape[1]) if count is None else count
        return x, cache.write(keys, values, queries, kept_count)


@partial(jax.jit, static_argnames=("config", "dtype", "rows", "length", "stacked"))
def empty_cache(
    config: TransformerConfig, dtype: str, rows: int, length: int, stacked: bool
) -> Cache:
    """Return a cache with room for at least `length` positions in each of `rows` rows.

    It is `stacked` as the parameters of the layers are, or has arrays for each layer.
    """
    length = cache_length(length)
    shape = (rows, config.kv_heads, length, config.head_dim)

    def zeros():
        if stacked:
            return constrain(jnp.zeros((config.layers, *shape), dtype), *CACHE_AXES)
        layers = (jnp.zeros(shape, dtype) for _ in range(config.layers))
        return tuple(constrain(layer, *CACHE_AXES[1:]) for layer in layers)

    padding = jnp.zeros((rows, length), jnp.int32)
    return Cache(zeros(), zeros(), Places(padding, padding), jnp.int32(0))


def cache_length(length: int) -> int:
    """Return the length of a cache with room for `length` positions.

    The part of it on every device has whole tiles, which chips read without a copy.
    """
    unit = TILE * splits("length")
    return -(-length // unit) * unit
