"""How far two results differ, and how far they may."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from launch.bench.accelerator.record import Result


@dataclass(frozen=True)
class Agreement(Result):
    """Relative errors, ||x - expected|| / ||expected||, and whether they are allowed."""

    errors: Mapping[str, float]
    allowed: Mapping[str, float]
    passed: bool

    @classmethod
    def of(cls, errors: Mapping[str, float], allowed: Mapping[str, float]) -> "Agreement":
        passed = all(errors[name] <= allowed[name] for name in errors)  # False for NaN
        return cls(errors, allowed, passed)


def relative_error(found: Any, expected: Any) -> float:
    x, y = (np.asarray(one, np.float64) for one in (found, expected))
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))
