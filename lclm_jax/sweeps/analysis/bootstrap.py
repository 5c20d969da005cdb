"""Uncertainty of a scaling law: laws of resampled losses, intervals, and undetermined exponents."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from lclm_jax.errors import ConfigError
from lclm_jax.sweeps.analysis.scaling_law import (
    Law,
    Observation,
    Term,
    make_problem,
    tabulate,
    with_solution,
)
from lclm_jax.sweeps.analysis.variable_projection import (
    EXPONENT_BOUNDS,
    LOG_BOUNDS,
    Problem,
    find_best,
    solve,
)

RESAMPLES = 200
QUANTILES = (0.025, 0.975)
MIN_LEVELS = 3  # with two, every exponent fits, each with another floor
OUTLIER = 3.0  # standard deviations
NEAR = 0.02  # relative distance at which an interval has reached a bound


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, resampled: ArrayLike) -> "Interval":
        """Return a value with the quantiles of its resampled values.

        Raises ConfigError where there are none.
        """
        if not np.size(resampled):
            raise ConfigError("expected laws of a bootstrap, got none; raise its count")
        array = np.asarray(resampled, np.float64)
        low, high = np.quantile(array, QUANTILES, method="weibull")  # unbiased for few resamples
        return cls(float(value), float(low), float(high))

    def contains(self, value: float) -> bool:
        """Return True where a value lies in the interval."""
        return self.low <= value <= self.high


def bootstrap(
    observations: Sequence[Observation], law: Law, count: int = RESAMPLES, seed: int = 0
) -> list[Law]:
    """Return laws fitted to resampled losses of the observations that `law` was fitted to.

    All cells are in every resample. Their losses are the law's times a residual that is drawn, with
    replacement, from those of all cells, and widened by what few cells hide. So the noise counts as
    independent and, relative to the loss, alike in all cells. Drawing cells would leave levels out
    of small sweeps; drawing seeds within configurations has half of the variance with two seeds,
    and none with one. Outliers are drawn as residuals of 3 standard deviations, which have the same
    weight in a Huber loss.

    The search starts from the exponents of the law and from a drawn point, so that exponents that
    the losses do not determine differ between resamples.

    Raises ConfigError unless there are more cells than parameters.
    """
    random = np.random.default_rng(seed)
    cells = sorted(observations, key=astuple)
    problem = make_problem(cells, law.terms)
    predictions = law.predict(**tabulate(cells))
    most = OUTLIER * law.noise
    residuals = np.clip(np.log(problem.losses / predictions), -most, most)
    residuals *= _widening(len(cells), problem.parameters)
    log_exponents = np.log([term.exponent for term in law.terms])

    def resample() -> Law:
        noise = random.choice(residuals, len(cells))
        resampled = Problem(problem.slopes, predictions * np.exp(noise))
        starts = (log_exponents, random.uniform(*LOG_BOUNDS, size=len(law.terms)))
        return with_solution(law, find_best(solve(resampled, x, law.noise) for x in starts))

    return [resample() for _ in range(count)]


def _widening(cells: int, parameters: int) -> float:
    """Return the factor that makes residuals of a fit as large as the noise, in intervals.

    A fit takes up the noise of as many cells as it has parameters, and what is left tells the size
    of the noise so much less well that Student's t takes the place of the normal distribution.
    """
    freedom = cells - parameters
    if freedom < 1:
        raise ConfigError(
            f"expected more cells than the {parameters} parameters of the law for intervals, got "
            f"{cells}; train further seeds or leave out terms"
        )
    ends = stats.t.ppf(QUANTILES[1], freedom) / stats.norm.ppf(QUANTILES[1])
    return float(ends) * math.sqrt(cells / freedom)


def estimate(statistic: Callable[[Law], float], law: Law, resamples: Sequence[Law]) -> Interval:
    """Return a number of the law, such as a prediction, with its interval over the resamples."""
    return Interval.of(statistic(law), [statistic(resample) for resample in resamples])


def estimate_parameters(law: Law, resamples: Sequence[Law]) -> dict[str, Interval]:
    """Return every parameter of `Law.parameters` with its interval.

    The interval of an exponent is all that is allowed where its factor has two levels.
    """
    intervals = {
        name: estimate(lambda x, name=name: x.parameters[name], law, resamples)
        for name in law.parameters
    }
    for term in law.terms:
        if len(term.levels) < MIN_LEVELS:
            intervals[f"{term.factor}.exponent"] = Interval(term.exponent, *EXPONENT_BOUNDS)
    return intervals


def find_undetermined(law: Law, resamples: Sequence[Law]) -> dict[str, str]:
    """Return the factors whose exponents the cells do not determine, each with the reason.

    Neither the coefficient of such a factor nor the floor is determined, and predictions hold at
    most between its levels. `floor` is among them where it may be 0.
    """
    intervals = estimate_parameters(law, resamples)
    reasons = {term.factor: _explain_exponent(term, intervals) for term in law.terms}
    if _reaches_zero(intervals["floor"]):
        reasons["floor"] = "its interval reaches 0"
    return {name: reason for name, reason in reasons.items() if reason}


def _reaches_zero(interval: Interval) -> bool:
    return interval.low <= NEAR * interval.value


def _explain_exponent(term: Term, intervals: Mapping[str, Interval]) -> str | None:
    """Return why the exponent of a term is not determined; None where it is."""
    factor, (least, most) = term.factor, EXPONENT_BOUNDS
    exponent = intervals[f"{factor}.exponent"]
    if len(term.levels) < MIN_LEVELS:
        return f"{len(term.levels)} values of {factor} were trained, and it takes {MIN_LEVELS}"
    if _reaches_zero(intervals[f"{factor}.coefficient"]):
        return f"the losses do not show an effect of {factor}"
    if exponent.low < least * (1 + NEAR) or exponent.high > most / (1 + NEAR):
        return (
            f"its interval, {exponent.low:.2g} to {exponent.high:.2g}, reaches the bounds of the "
            f"search, {least:g} and {most:g}"
        )
    return None
