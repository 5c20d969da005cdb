"""Ways to read a model that only CPUs need.

Batch and length become one axis: XLA for CPUs is slow at sums over two axes and at a first axis of
length 1, and it transposes a matrix for the gradient of a product over two axes.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp

from lclm_jax.distributed.sharding import platform, splits
from lclm_jax.typing import Array


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
