"""Matrix products of a traced program."""

import math
from collections import Counter

from jax.extend.core import Jaxpr, JaxprEqn

from lclm_jax.capacity.walk import Cached, tally


def matmul_flops(jaxpr: Jaxpr, cached: Cached | None = None) -> Counter[str]:
    """FLOPs of every dot_general on all devices, by source; a multiply-add is two.

    Products inside kernels (Pallas) are not counted. See `tally` for conditionals and loops.
    """
    return tally(jaxpr, lambda _: _flops, cached)


def _flops(equation: JaxprEqn) -> int:
    if equation.primitive.name != "dot_general":
        return 0
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)
