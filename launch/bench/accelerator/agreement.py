"""Relative errors between two results, and the limits they must keep."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from launch.bench.accelerator.record import Result


@dataclass(frozen=True)
class Agreement(Result):
    """Relative errors, ||x - expected|| / ||expected||, and their limits."""

    errors: Mapping[str, float]
    allowed: Mapping[str, float]
    passed: bool

    @classmethod
    def of(cls, errors: Mapping[str, float], allowed: Mapping[str, float]) -> "Agreement":
        passed = all(errors[name] <= allowed[name] for name in errors)  # False for NaN
        return cls(errors, allowed, passed)


def relative_error(result: Any, expected: Any) -> float:
    """Return ||result - expected|| / ||expected||, computed in float64."""
    x, y = np.asarray(result, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))
