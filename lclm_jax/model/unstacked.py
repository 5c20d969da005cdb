"""Layers of a decoder stored one by one, for serving on CPUs and GPUs.

A scan over stacked layers selects the parameters of each layer as it goes. A CPU copies them; a GPU
starts several small graphs of kernels for every layer, in place of one for the whole token.
"""

from functools import partial

import flax.linen as nn
import jax

from lclm_jax.typing import Array, Params

# Decoder layers up to this size are stored one by one. Larger ones stay stacked: both layouts are
# in memory while one is made from the other.
MAX_BYTES = {"cpu": 2**30, "gpu": 2**34}


def is_unstacked(layers: object) -> bool:
    """Return True if layers of parameters, or of a cache, are stored one by one."""
    return isinstance(layers, tuple)


def prefers_unstacked(layers: Params | tuple[Params, ...], platform: str) -> bool:
    """Return True if stacked layers are served faster one by one."""
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(layers))
    return not is_unstacked(layers) and size <= MAX_BYTES.get(platform, 0)


def split_layers(stacked: Params, layers: int, donate: bool = False) -> tuple[Params, ...]:
    """Return the parameters of each layer, [L ...] -> L times [...].

    With `donate`, the stacked parameters are deleted one after the other, so that little more
    memory is needed than theirs.
    """
    leaves, tree = jax.tree.flatten(stacked)
    split = []
    for leaf in leaves:
        split.append(_split(leaf, layers))
        if donate:
            jax.block_until_ready(split[-1])
            leaf.delete()
    return tuple(tree.unflatten(own) for own in zip(*split, strict=True))


@partial(jax.jit, static_argnames=("layers",))
def _split(stacked: Array, layers: int) -> tuple[Array, ...]:
    return tuple(stacked[i] for i in range(layers))


def read_layers(
    block: nn.Module, layers: tuple[Params, ...], x: Array, queries, cache
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
