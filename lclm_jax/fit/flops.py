"""Matrix products of a traced program, counted from its jaxpr: a compiler's own count sees the body of a loop once."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

SOURCES = ("attend", "encoder", "adapter", "decoder", "loss", "logits")  # names in the program, the first that fits
OTHER = "other"


def matmul_flops(jaxpr: Jaxpr) -> Counter[str]:
    """FLOPs of every dot_general, on all devices, by source; a multiply-add is two. Kernels (Pallas) count nothing.

    Of the branches of a conditional the dearest counts; a loop of unknown length counts once.
    """
    return _count(jaxpr, "", 1)


def _count(jaxpr: Jaxpr, outer: str, times: int) -> Counter[str]:
    total: Counter[str] = Counter()
    for equation in jaxpr.eqns:
        name = f"{outer}/{equation.source_info.name_stack}"
        if equation.primitive.name == "dot_general":
            total[_source(name)] += times * _dot(equation)
        elif equation.primitive.name == "cond":
            branches = [_count(inner, name, times) for inner in _inside(equation)]
            total += max(branches, key=lambda branch: branch.total())
        elif equation.primitive.name != "pallas_call":
            for inner in _inside(equation):
                total += _count(inner, name, times * _repeats(equation))
    return total


def _source(name: str) -> str:
    """Of the last module or scope on the name stack that is one of SOURCES."""
    return next((source for source in SOURCES if source in name), OTHER)


def _dot(equation: JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _repeats(equation: JaxprEqn) -> int:
    """How often what is inside runs: the length of a scan, the devices of a shard_map."""
    if equation.primitive.name == "scan":
        return equation.params["length"]
    if equation.primitive.name == "shard_map":
        mesh, manual = equation.params["mesh"], equation.params["newly_manual_axes"]
        return math.prod(mesh.shape[axis] for axis in manual)
    return 1


def _inside(equation: JaxprEqn) -> Iterator[Jaxpr]:
    for parameter in jax.tree.leaves(tuple(equation.params.values()), is_leaf=_is_jaxpr):
        if _is_jaxpr(parameter):
            yield getattr(parameter, "jaxpr", parameter)


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, (Jaxpr, ClosedJaxpr))
