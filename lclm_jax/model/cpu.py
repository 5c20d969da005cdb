"""Ways to read a model that only CPUs need.

Batch and length become one axis: XLA for CPUs is slow at sums over two axes and at a first axis of
length 1, and it transposes a matrix for the gradient of a product over two axes.

Layers of a small decoder are split for serving: a scan over stacked layers copies the parameters of
each layer before it multiplies by them.
"""

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from lclm_jax.batch import Places
from lclm_jax.distributed.sharding import platform, splits
from lclm_jax.typing import Array, Params


def merges_rows() -> bool:
    """Return True on CPUs, unless the mesh in scope splits the length."""
    return platform() == "cpu" and splits("length") == 1


def multiply_rows(x: Array, matrix: Array, summed: int) -> Array:
    """Compute `jnp.tensordot` of activations [B T ...] and a parameter as one matrix product.

    The last `summed` axes of `x` are summed over, with as many first axes of the parameter.
    """
    width = math.prod(matrix.shape[:summed])
    product = jnp.reshape(x, (-1, width)) @ jnp.reshape(matrix, (width, -1))
    return product.reshape(*x.shape[:2], *matrix.shape[summed:])


def on_merged_rows(function: Callable[..., Array]) -> Callable[..., Array]:
    """Let a function of activations [B T ... D] read them as [B*T ... D]."""

    def call(x: Array, *inputs) -> Array:
        if x.ndim <= 2:
            return function(x, *inputs)
        merged = x.reshape(-1, *x.shape[2:])
        return function(merged, *inputs).reshape(x.shape)

    return call


@partial(jax.jit, static_argnames=("layers",))
def split_layers(stacked: Params, layers: int) -> tuple[Params, ...]:
    """Return the parameters of each layer, [L ...] -> L times [...]."""
    return tuple(jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(layers))


def read_layers(
    block: nn.Module, layers: tuple[Params, ...], x: Array, queries: Places, cache
) -> tuple[Array, tuple | None]:
    """Apply `block` with the parameters of each layer in turn.

    `cache` is a `Cache` whose keys and values are tuples by layer, or None. Returns the hidden
    states and, given a cache, tuples of the keys and of the values to be written to it.
    """
    # One function for all layers: it is traced and lowered once.
    read = jax.jit(lambda params, *inputs: block.apply({"params": params}, *inputs))
    written = []
    for i, params in enumerate(layers):
        own_cache = cache and cache.replace(keys=cache.keys[i], values=cache.values[i])
        x, own = read(params, x, queries, own_cache, None)
        written.append(own)
    if cache is None:
        return x, None

    # Make what is written depend on the hidden state; otherwise XLA copies the whole cache for
    # every token (it drops an optimization_barrier).
    nothing = (x[:, :1, :1, None] * 0).astype(written[0][0].dtype)
    return x, jax.tree.map(lambda array: array + nothing, tuple(zip(*written, strict=True)))
