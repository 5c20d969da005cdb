"""Adds up the work of a traced program from its jaxpr, times the loops around each operation.

A compiler's own count sees the body of a loop once.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

SOURCES = ("attend", "encoder", "adapter", "decoder", "loss", "logits")  # the first in a name wins
OTHER = "other"
KERNELS = ("pallas_call", "core_map", "mpmd_map")  # how versions of JAX call those of Pallas


@dataclass(frozen=True)
class Cached:
    """How much of a cache a program reads on one device. An array is a cache, or a prefix of one,
    if it has an axis of one of `lengths`."""

    lengths: frozenset[int]
    positions: int  # that are read
    layers: int  # of a cache that is stacked

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The part of an array of this shape that one layer's attention reads."""
        if not self.lengths.intersection(shape):
            return shape
        one = shape[1:] if len(shape) > 4 and shape[0] == self.layers else shape
        return tuple(min(d, self.positions) if d in self.lengths else d for d in one)


Weigh = Callable[[JaxprEqn], int]  # the work of one operation
Rule = Callable[[Jaxpr], Weigh]  # for the operations of one body


def tally(jaxpr: Jaxpr, rule: Rule, cached: Cached | None = None) -> Counter[str]:
    """The work on all devices by source, as `rule` weighs operations and kernels.

    Of the branches of a conditional the dearest counts. A loop of unknown length runs until its
    slices have covered the longest array that they are cut from, of a cache what is read.
    """
    return _add(jaxpr, rule, cached, "", 1)


def _add(jaxpr: Jaxpr, rule: Rule, cached: Cached | None, outer: str, times: int) -> Counter[str]:
    total: Counter[str] = Counter()
    weigh = rule(jaxpr)
    for equation in jaxpr.eqns:
        name = f"{outer}/{equation.source_info.name_stack}"
        kind = equation.primitive.name
        if work := weigh(equation):
            total[_source(name)] += times * work
        if kind in KERNELS:
            continue
        repeats = times * _repeats(equation, cached)
        inside = [_add(inner, rule, cached, name, repeats) for inner in bodies(equation)]
        total += max(inside, key=Counter.total) if kind == "cond" else sum(inside, Counter())
    return total


def _source(name: str) -> str:
    return next((source for source in SOURCES if source in name), OTHER)


def _repeats(equation: JaxprEqn, cached: Cached | None) -> int:
    """How often what is inside runs: turns of a loop, devices of a shard_map."""
    if equation.primitive.name == "scan":
        return equation.params["length"]
    if equation.primitive.name == "while":
        return _turns(equation.params["body_jaxpr"].jaxpr, equation.params["body_nconsts"], cached)
    if equation.primitive.name == "shard_map":
        mesh, manual = equation.params["mesh"], equation.params["newly_manual_axes"]
        return math.prod(mesh.shape[axis] for axis in manual)
    return 1


def _turns(body: Jaxpr, constants: int, cached: Cached | None) -> int:
    """Slices that cover the arrays that a loop's body is given and cuts."""
    given, turns = set(body.invars[:constants]), 1
    for equation in body.eqns:
        if equation.primitive.name == "dynamic_slice" and equation.invars[0] in given:
            shape = equation.invars[0].aval.shape
            whole = math.prod(cached.shape(shape) if cached else shape)
            turns = max(turns, -(-whole // math.prod(equation.outvars[0].aval.shape)))
    return turns


def bodies(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """The jaxprs inside an operation."""
    for parameter in jax.tree.leaves(tuple(equation.params.values()), is_leaf=_is_jaxpr):
        if _is_jaxpr(parameter):
            yield getattr(parameter, "jaxpr", parameter)


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, (Jaxpr, ClosedJaxpr))
