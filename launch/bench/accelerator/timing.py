"""Seconds of a call, until everything it returns has been computed, and the memory it took."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import jax


def seconds_of(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - started


def repeat(
    call: Callable[[], Any], seconds: float = 3.0, least: int = 2, most: int = 9
) -> list[float]:
    """Seconds of several calls: at least `least`, then more until `seconds` are spent."""
    spent: list[float] = []
    while len(spent) < least or (len(spent) < most and sum(spent) < seconds):
        spent.append(seconds_of(call))
    return spent


def pipelined(
    call: Callable[[], Any], most: int = 10, rounds: int = 5, seconds: float = 0.1
) -> list[float]:
    """Seconds of one call when several are sent to the device before the first is awaited: at most
    `most`, and so few that they take about `seconds`."""
    jax.block_until_ready(call())
    count = max(1, min(most, int(seconds / seconds_of(call))))

    def several() -> Any:
        return [call() for _ in range(count)][-1]

    return [seconds / count for seconds in repeat(several, least=rounds, most=rounds)]


def peak_memory() -> int | None:
    """The most bytes of the first device that were in use at a time since the process began."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def memory_limit() -> int | None:
    """Bytes of the first device that the process may use."""
    return (jax.devices()[0].memory_stats() or {}).get("bytes_limit")


def middle(values: list[float]) -> float:
    return float(median(values))
