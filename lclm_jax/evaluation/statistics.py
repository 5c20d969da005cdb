"""Shares with their confidence intervals."""

import math
from dataclasses import dataclass

Z_95 = 1.96  # standard deviations that bound 95 % of a normal distribution


@dataclass(frozen=True)
class Proportion:
    """A share of `count` cases with its 95 % Wilson interval; all NaN where there are no cases."""

    value: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, right: float, count: int) -> "Proportion":
        """Return the share `right` / `count` (Wilson, JASA 22, 1927)."""
        if not count:
            return cls(math.nan, math.nan, math.nan, 0)
        z, p = Z_95, float(right) / count
        scale = 1 + z * z / count
        middle = (p + z * z / (2 * count)) / scale
        half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count)) / scale
        return cls(p, max(0.0, middle - half), min(1.0, middle + half), count)

    def to_dict(self) -> dict[str, float]:
        """Return value, bounds and number of cases."""
        return {"value": self.value, "low": self.low, "high": self.high, "count": self.count}
