"""Sum the work of a traced program over its jaxpr, times the loops around each operation.

A compiler's own cost analysis counts the body of a loop once.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import jax
from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

# Named scopes that work is attributed to; the first one found in a name counts.
SOURCES = ("attend", "encoder", "adapter", "decoder", "loss", "logits")
OTHER = "other"
KERNELS = ("pallas_call", "core_map", "mpmd_map")  # Pallas kernels in different versions of JAX

Cost = Callable[[JaxprEqn], int]  # the work of one operation
CostRule = Callable[[Jaxpr], Cost]  # the cost function for the operations of one jaxpr


@dataclass(frozen=True)
class CacheRead:
    """Part of a KV cache that a program reads on one device.

    An array counts as the cache, or a prefix of it, if an axis has one of `lengths`.
    """

    lengths: frozenset[int]
    positions: int  # read by the program
    layers: int  # of the stacked cache

    def read_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the part of an array of this shape that the attention of one layer reads."""
        if not self.lengths.intersection(shape):
            return shape
        stacked = len(shape) > 4 and shape[0] == self.layers
        layer_shape = shape[1:] if stacked else shape
        return tuple(
            min(size, self.positions) if size in self.lengths else size for size in layer_shape
        )


def sum_work(jaxpr: Jaxpr, rule: CostRule, cache: CacheRead | None = None) -> Counter[str]:
    """Return the work on all devices by source, with the cost of each operation from `rule`.

    A conditional counts its most expensive branch. A `while` loop is assumed to run until its
    slices have covered the longest array they are cut from, or the part of a cache that is read.
    """
    return _sum_work(jaxpr, rule, cache, "", 1)


def _sum_work(
    jaxpr: Jaxpr, rule: CostRule, cache: CacheRead | None, outer_name: str, repeats: int
) -> Counter[str]:
    total: Counter[str] = Counter()
    cost = rule(jaxpr)

    for equation in jaxpr.eqns:
        name = f"{outer_name}/{equation.source_info.name_stack}"
        kind = equation.primitive.name
        if work := cost(equation):
            total[_source(name)] += repeats * work
        if kind in KERNELS:
            continue  # a cost rule judges a kernel as a whole

        inner_repeats = repeats * _repeats(equation, cache)
        bodies = [
            _sum_work(inner, rule, cache, name, inner_repeats) for inner in inner_jaxprs(equation)
        ]
        if kind == "cond":
            total += max(bodies, key=Counter.total)
        else:
            total += sum(bodies, Counter())
    return total


def _source(name: str) -> str:
    return next((source for source in SOURCES if source in name), OTHER)


def _repeats(equation: JaxprEqn, cache: CacheRead | None) -> int:
    """Return how often the inner jaxpr runs: iterations of a loop, devices of a shard_map."""
    kind, params = equation.primitive.name, equation.params
    if kind == "scan":
        return params["length"]
    if kind == "while":
        return _iterations(params["body_jaxpr"].jaxpr, params["body_nconsts"], cache)
    if kind == "shard_map":
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return 1


def _iterations(body: Jaxpr, constants: int, cache: CacheRead | None) -> int:
    """Return the number of slices that cover the constant arrays which the loop body slices."""
    arrays, iterations = set(body.invars[:constants]), 1
    for equation in body.eqns:
        if equation.primitive.name != "dynamic_slice" or equation.invars[0] not in arrays:
            continue
        shape = shape_of(equation.invars[0])
        size = math.prod(cache.read_shape(shape) if cache else shape)
        slice_size = math.prod(shape_of(equation.outvars[0]))
        iterations = max(iterations, -(-size // slice_size))
    return iterations


def shape_of(array: Var | Literal) -> tuple[int, ...]:
    """Return the shape of an array of a jaxpr."""
    return cast(ShapedArray, array.aval).shape


def inner_jaxprs(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """Yield the jaxprs among the parameters of an operation."""
    for parameter in jax.tree.leaves(tuple(equation.params.values()), is_leaf=_is_jaxpr):
        if _is_jaxpr(parameter):
            yield getattr(parameter, "jaxpr", parameter)


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, (Jaxpr, ClosedJaxpr))
