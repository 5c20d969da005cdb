"""Bytes that a traced program moves between a chip and its memory.

Elementwise work and reductions are assumed fused into the matrix products, kernels, gathers and
updates beside them, each of which reads its operands and writes its result once.
"""

import math
from collections import Counter
from functools import partial
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, Var

from lclm_jax.capacity.walk import KERNELS, Cached, Weigh, bodies, tally

VIEWS = (
    "reshape",
    "squeeze",
    "expand_dims",
    "broadcast_in_dim",
    "transpose",
    "convert_element_type",
)
SLICES = ("slice", "dynamic_slice")
UPDATES = {"dynamic_update_slice": 1, "scatter": 2, "scatter-add": 2}  # the operand that is written
BLOCKS = ("cond", "while", "scan")  # what they are handed lies in memory


def moved_bytes(jaxpr: Jaxpr, cached: Cached | None = None) -> Counter[str]:
    """Bytes read and written on all devices, by source.

    Kernels (Pallas) read their operands once, and of a cache only what is in use. A slice that
    only products read is no copy; one that a kernel, a loop or a conditional is handed is.
    """
    return tally(jaxpr, partial(_rule, cached), cached)


def _rule(cached: Cached | None, jaxpr: Jaxpr) -> Weigh:
    copied = _handed_over(jaxpr)

    def weigh(equation: JaxprEqn) -> int:
        kind, out = equation.primitive.name, equation.outvars
        if kind in KERNELS:
            return sum(_size(x, cached) for x in [*equation.invars, *out])
        if kind == "dot_general":
            return sum(map(_size, [*equation.invars, *out]))
        if kind == "gather" or (kind in SLICES and out[0] in copied):
            return 2 * _size(out[0])
        if kind in UPDATES:
            return 2 * _size(equation.invars[UPDATES[kind]])
        return 0

    return weigh


def _handed_over(jaxpr: Jaxpr) -> set[Var]:
    """Arrays that a kernel, a loop or a conditional is handed as they are, or seen another way."""
    found: set[Var] = set()
    for equation in reversed(jaxpr.eqns):
        kind = equation.primitive.name
        if kind in (*KERNELS, *BLOCKS) or (kind in VIEWS and equation.outvars[0] in found):
            found.update(x for x in equation.invars if isinstance(x, Var))
            continue
        for inner in bodies(equation):
            if len(inner.invars) == len(equation.invars):
                inside = _handed_over(inner)
                pairs = zip(equation.invars, inner.invars, strict=True)
                found.update(x for x, y in pairs if y in inside and isinstance(x, Var))
    return found


def _size(x: Any, cached: Cached | None = None) -> int:
    shape = getattr(x.aval, "shape", ())
    dtype = getattr(x.aval, "dtype", None)
    return math.prod(cached.shape(shape) if cached else shape) * getattr(dtype, "itemsize", 0)
