"""Array types of public signatures, and the axis letters that they share with einsums.

    A  all windows of a batch, B * C         M  latents per row, C * P
    B  rows                                  N  query heads
    C  windows per row                       P  latents per window
    D  width of a transformer; beside E      Q  queries that share a key head, G * T
       the decoder's                         R  ratio: tokens per latent
    E  width of the encoder                  S  keys
    F  width inside an MLP                   T  positions of a row; queries
    G  query heads per key head, N / K       V  vocabulary
    H  width of a head                       W  positions of a window
    I  width of the adapter's input          X  streams of the data
    K  key heads                             Z  blocks that an axis is cut into
    L  layers

Axes that no einsum has are words: `heads` of either kind, `steps`, `stops`, `candidates`, `blocks`.
"""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, jaxtyped

__all__ = ["Array", "Bool", "Float", "Int", "Params", "typed"]

Array = jax.Array | np.ndarray  # the same functions serve both
Params = dict[str, Any]  # a plain nested dict of arrays
Function = TypeVar("Function", bound=Callable)


def typed(function: Function) -> Function:
    """Check the shapes and dtypes of a signature at every call if LCLM_JAX_CHECK_TYPES=1.

    The tests set that variable. Without it the function is returned as it is.
    """
    if os.environ.get("LCLM_JAX_CHECK_TYPES") != "1":
        return function
    from beartype import beartype

    return jaxtyped(typechecker=beartype)(function)
