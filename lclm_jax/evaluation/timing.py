"""Time of a call until its results are computed."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, TypeVar

import jax

T = TypeVar("T")


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """Return the result of a call, and the seconds until all of it is computed."""
    started = time.perf_counter()
    result = jax.block_until_ready(call())
    return result, time.perf_counter() - started


def seconds_of(call: Callable[[], Any]) -> float:
    """Return the seconds of a call until all it returns is computed."""
    return timed(call)[1]


def repeat(
    call: Callable[[], Any], seconds: float = 3.0, least: int = 2, most: int = 9
) -> list[float]:
    """Time several calls: at least `least`, then up to `most` until `seconds` are spent."""
    spent: list[float] = []
    while len(spent) < least or (len(spent) < most and sum(spent) < seconds):
        spent.append(seconds_of(call))
    return spent


def pipelined(
    call: Callable[[], Any], most: int = 10, rounds: int = 5, seconds: float = 0.1
) -> list[float]:
    """Return the seconds per call, in every round, when calls are queued on the device.

    A round queues at most `most` calls, and only as many as take about `seconds`, then waits.
    """
    jax.block_until_ready(call())
    count = max(1, min(most, int(seconds / seconds_of(call))))

    def several() -> Any:
        return [call() for _ in range(count)][-1]

    return [seconds / count for seconds in repeat(several, least=rounds, most=rounds)]


def middle(values: Sequence[float]) -> float:
    """Return the median."""
    return float(median(values))
