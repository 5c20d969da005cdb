"""The Qwen3 transformer: one stack, scanned over layers and rematerialised, that serves both towers."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lclm_jax.config import TransformerConfig
from lclm_jax.model.attend import TILE, RowAxes
from lclm_jax.model.attention import Attention, Cache
from lclm_jax.model.layers import MLP, RMSNorm, matrix_init, parameter
from lclm_jax.model.masks import Places
from lclm_jax.model.stretches import SAVED
from lclm_jax.sharding import constrain, splits
from lclm_jax.typing import Array, Float, Int, Params, typed

REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, jax.checkpoint_policies.save_only_these_names(SAVED)
    ),
}


class Block(nn.Module):
    """One layer, in the shape `nn.scan` wants: the residual stream through, this layer's keys and values in and out."""

    config: TransformerConfig
    axes: RowAxes = ("batch", "length")  # of x

    @nn.compact
    def __call__(self, x, queries: Places, cached: tuple[Places, Array] | None, layer: tuple[Array, Array] | None):
        c = self.config
        cache = None if cached is None else Cache(*(layer or (None, None)), *cached)
        x = constrain(x, *self.axes, "activation")
        attended, written = Attention(c, self.axes, name="attention")(
            RMSNorm(c.norm_eps, name="attention_norm")(x), queries, cache
        )
        x = x + attended
        x = x + MLP(c, name="mlp")(RMSNorm(c.norm_eps, name="mlp_norm")(x))
        return x, written


def layer_stack(config: TransformerConfig, remat: str, name: str | None = None, axes: RowAxes = ("batch", "length")) -> nn.Module:
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
        self.table = parameter(self, "table", (c.vocab, c.width), ("vocab", "table"), matrix_init(c))
        self.layers = layer_stack(c, self.remat, axes=self.axes)
        self.norm = RMSNorm(c.norm_eps)

    @typed
    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        return constrain(jnp.take(self.table, tokens, axis=0), *self.axes, "activation")

    @typed
    def __call__(
        self, x: Float[Array, "B T D"], queries: Places, cache: Cache | None = None
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        """Hidden states after the final norm and, given a cache with room, the cache with these tokens in it."""
        if cache is None:
            x, _ = self.layers(x, queries, None, None)
            return self.norm(x), None
        held = None if cache.keys is None else (cache.keys, cache.values)
        x, read = self._after(x, queries, (cache.places, cache.end), held)
        return self.norm(x), cache.write(*read, queries)

    def _after(self, x, queries: Places, cached: tuple[Places, Array], held):
        """`layers` after a cache: scanned, or one by one where parameters and cache came so (`unstack`)."""
        layers = self.get_variable("params", "layers")
        if not isinstance(layers, tuple):
            return self.layers(x, queries, cached, held)
        block, reads = Block(self.config, self.axes, parent=None), []
        for params, kept in zip(layers, zip(*held, strict=True), strict=True):
            x, read = block.apply({"params": params}, x, queries, cached, kept)
            reads.append(read)
        # What is written must depend on what was read, or XLA copies the whole cache for every token (and drops a barrier).
        nothing = (x[:, :1, :1, None] * 0).astype(reads[0][0].dtype)
        return x, jax.tree.map(lambda read: read + nothing, tuple(zip(*reads, strict=True)))


def unstack(params: Params, cache: Cache) -> tuple[Params, Cache]:
    """A transformer's parameters and cache with those of its layers one by one, [L ...] -> L times [...].

    A loop over tokens reads them where they lie; of stacked ones CPUs copy each layer before every product.
    """

    def split(stacked):
        arrays, structure = jax.tree.flatten(stacked)
        return tuple(structure.unflatten(layer) for layer in zip(*arrays, strict=True))

    unstacked = cache.replace(keys=split(cache.keys), values=split(cache.values))
    return {**params, "layers": split(params["layers"])}, unstacked


def empty_cache(batch: int, length: int) -> Cache:
    """Room for at least `length` positions in each of `batch` rows; what is read first makes the arrays."""
    nowhere = jnp.zeros((batch, cache_length(length)), jnp.int32)
    return Cache(None, None, Places(nowhere, nowhere), jnp.int32(0))


def cache_length(length: int) -> int:
    """Positions of a cache with room for so many: every part of a sequence whole tiles, which chips read without a copy."""
    unit = TILE * splits("length")
    return -(-length // unit) * unit
