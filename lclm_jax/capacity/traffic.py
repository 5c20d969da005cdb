"""Bytes that a traced program moves between a chip and its memory.

Elementwise work and reductions are assumed to be fused into the neighbouring matrix products,
kernels, gathers and updates. Each of these reads its operands and writes its result once.
"""

import math
from collections import Counter
from functools import partial
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, Var

from lclm_jax.capacity.jaxpr import KERNELS, CacheRead, Cost, inner_jaxprs, sum_work

VIEWS = (
    "reshape",
    "squeeze",
    "expand_dims",
    "broadcast_in_dim",
    "transpose",
    "convert_element_type",
)
SLICES = ("slice", "dynamic_slice")
UPDATED_OPERAND = {"dynamic_update_slice": 1, "scatter": 2, "scatter-add": 2}
CONTROL_FLOW = ("cond", "while", "scan")  # their operands must lie in memory


def moved_bytes(jaxpr: Jaxpr, cache: CacheRead | None = None) -> Counter[str]:
    """Count the bytes read and written on all devices, by source.

    Pallas kernels read their operands once, and only the part of a cache that is in use. A slice
    counts as a copy if a kernel, a loop or a conditional takes it, not if only products read it.
    """
    return sum_work(jaxpr, partial(_cost, cache), cache)


def _cost(cache: CacheRead | None, jaxpr: Jaxpr) -> Cost:
    materialized = _materialized(jaxpr)

    def cost(equation: JaxprEqn) -> int:
        kind, operands, results = equation.primitive.name, equation.invars, equation.outvars
        if kind in KERNELS:
            return sum(_bytes(x, cache) for x in [*operands, *results])
        if kind == "dot_general":
            return sum(_bytes(x) for x in [*operands, *results])
        if kind == "gather" or (kind in SLICES and results[0] in materialized):
            return 2 * _bytes(results[0])
        if kind in UPDATED_OPERAND:
            return 2 * _bytes(operands[UPDATED_OPERAND[kind]])
        return 0

    return cost


def _materialized(jaxpr: Jaxpr) -> set[Var]:
    """Return the arrays that a kernel, loop or conditional takes, directly or through views."""
    arrays: set[Var] = set()
    for equation in reversed(jaxpr.eqns):
        kind, operands = equation.primitive.name, equation.invars
        is_view = kind in VIEWS and equation.outvars[0] in arrays
        if kind in KERNELS or kind in CONTROL_FLOW or is_view:
            arrays.update(x for x in operands if isinstance(x, Var))
            continue

        for inner in inner_jaxprs(equation):
            if len(inner.invars) != len(operands):
                continue
            inside = _materialized(inner)
            pairs = zip(operands, inner.invars, strict=True)
            arrays.update(x for x, y in pairs if y in inside and isinstance(x, Var))
    return arrays


def _bytes(x: Any, cache: CacheRead | None = None) -> int:
    shape = getattr(x.aval, "shape", ())
    dtype = getattr(x.aval, "dtype", None)
    read = cache.read_shape(shape) if cache else shape
    return math.prod(read) * getattr(dtype, "itemsize", 0)
