"""FLOPs of the matrix products in a traced program."""

import math
from collections import Counter

from jax.extend.core import Jaxpr, JaxprEqn

from lclm_jax.capacity.jaxpr import CacheRead, shape_of, sum_work


def matmul_flops(jaxpr: Jaxpr, cache: CacheRead | None = None) -> Counter[str]:
    """Count the FLOPs of every dot_general on all devices, by source; a multiply-add is two.

    Products inside Pallas kernels are not counted. See `sum_work` for conditionals and loops.
    """
    return sum_work(jaxpr, lambda _: _dot_flops, cache)


def _dot_flops(equation: JaxprEqn) -> int:
    if equation.primitive.name != "dot_general":
        return 0
    (contracted, _), _ = equation.params["dimension_numbers"]
    left_shape = shape_of(equation.invars[0])
    out_shape = shape_of(equation.outvars[0])
    return 2 * math.prod(out_shape) * math.prod(left_shape[axis] for axis in contracted)
