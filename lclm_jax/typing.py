"""Array types of public signatures, and the axis letters they and the einsums share.

B batch, T query length, S key length, D width, E encoder width, N query heads, K kv heads, G = N/K, H head dim,
F mlp, V vocab, L layers, C windows per row, W positions of a window, R ratio, P latents per window, M = C*P latents per row.
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
F = TypeVar("F", bound=Callable)


def typed(function: F) -> F:
    """Checks the shapes and dtypes of a signature at every call when LCLM_JAX_CHECK_TYPES=1 (the tests set it); else free."""
    if os.environ.get("LCLM_JAX_CHECK_TYPES") != "1":
        return function
    from beartype import beartype

    return jaxtyped(typechecker=beartype)(function)
