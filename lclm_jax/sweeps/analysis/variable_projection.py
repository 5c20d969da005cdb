"""Robust fits of a constant and a sum of powers, by variable projection.

Given the exponents, the coefficients are a linear problem with one solution, so that only the
exponents are searched (Golub and Pereyra, SIAM J. Numer. Anal. 10, 1973). With few runs this is
more stable than a search over all parameters.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import leastsq, nnls
from scipy.special import huber

from lclm_jax.typing import Float, typed

EXPONENT_BOUNDS = (0.02, 3.0)
LOG_BOUNDS = tuple(np.log(EXPONENT_BOUNDS))
HUBER_DEVIATIONS = 1.345  # threshold of 95 % efficiency for normal residuals
NORMAL_QUARTILE = 0.6745  # standard deviations; the median of absolute normal residuals
SMALLEST_NOISE = 1e-7  # relative; smaller residuals are of rounding
STEEPEST_SINE = 0.99  # of a start; at a bound itself nothing would move it
MAX_REWEIGHTINGS = 30
MAX_NOISE_ESTIMATES = 5
TOLERANCE = 1e-3  # relative change of the objective or of the noise at which repetition ends


@dataclass(frozen=True)
class Problem:
    """Losses to be fitted by `c[0] + sum_k c[k] * exp(p[k] * slopes[:, k])`, where c >= 0, p > 0.

    `slopes` are logs of factors, with the sign of their power. Residuals are relative,
    prediction / loss - 1. They are linear in the coefficients, as variable projection needs, and
    to first order those of log losses.
    """

    slopes: Float[np.ndarray, "cells terms"]
    losses: Float[np.ndarray, "cells"]

    @property
    def parameters(self) -> int:
        """Number of coefficients and exponents."""
        return 1 + 2 * self.slopes.shape[1]

    def project(
        self, log_exponents: Float[np.ndarray, "terms"], weights: Float[np.ndarray, "cells"]
    ) -> tuple[Float[np.ndarray, "coefficients"], Float[np.ndarray, "cells"]]:
        """Return the best coefficients for these exponents, and residuals without weights."""
        powers = np.exp(np.exp(log_exponents) * self.slopes)
        design = np.column_stack([np.ones(len(powers)), powers]) / self.losses[:, None]
        roots = np.sqrt(weights)
        coefficients, _ = nnls(design * roots[:, None], roots)
        return coefficients, design @ coefficients - 1


@dataclass(frozen=True)
class Solution:
    """Parameters of a fit, its residuals, and the sum of their Huber losses."""

    coefficients: Float[np.ndarray, "coefficients"]
    residuals: Float[np.ndarray, "cells"]
    log_exponents: Float[np.ndarray, "terms"]
    objective: float


@typed
def search(
    problem: Problem, starts: Iterable[Float[np.ndarray, "terms"]]
) -> tuple[Solution, float]:
    """Return the best fit from any of the starts, and the standard deviation of its residuals.

    Starts are logs of exponents. The deviation sets the threshold of the Huber loss, and a fit
    changes it in turn, so both are repeated until they agree.
    """
    solutions = [solve(problem, start, np.inf) for start in starts]
    noise = estimate_noise(find_best(solutions).residuals, problem.parameters)
    for _ in range(MAX_NOISE_ESTIMATES):
        solutions = [solve(problem, x.log_exponents, noise) for x in _distinct(solutions)]
        last, noise = noise, estimate_noise(find_best(solutions).residuals, problem.parameters)
        if abs(noise - last) <= TOLERANCE * last:
            break
    return find_best(solutions), noise


@typed
def solve(problem: Problem, start: Float[np.ndarray, "terms"], noise: float) -> Solution:
    """Return the fit with the smallest sum of Huber losses that a descent from one start reaches.

    `noise` is the standard deviation of residuals: those within 1.345 of it count by their squares,
    larger ones by their size. Variable projection minimises squares, so it is repeated with weights
    under which squares have the slope of Huber losses. No repetition raises the sum.
    """
    threshold = HUBER_DEVIATIONS * noise
    solution = Solution(*problem.project(start, np.ones(len(problem.losses))), start, np.inf)
    for _ in range(MAX_REWEIGHTINGS):
        last = solution
        weights = 1 / np.maximum(np.abs(last.residuals) / threshold, 1)
        log_exponents = _solve_squares(problem, last.log_exponents, weights)
        coefficients, residuals = problem.project(log_exponents, weights)
        objective = float(huber(threshold, residuals).sum())
        solution = Solution(coefficients, residuals, log_exponents, objective)
        if last.objective - objective <= TOLERANCE * objective:
            break
    return solution


def _solve_squares(problem: Problem, start: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the logs of the exponents with the smallest weighted squares, from a start.

    MINPACK knows no bounds, so it varies angles, whose sines span the interval between them. That
    takes a quarter of the time of scipy's `least_squares`.
    """
    low, high = LOG_BOUNDS

    def to_logs(angles: np.ndarray) -> np.ndarray:
        return low + (high - low) * (1 + np.sin(angles)) / 2

    def residuals(angles: np.ndarray) -> np.ndarray:
        return np.sqrt(weights) * problem.project(to_logs(angles), weights)[1]

    sines = 2 * (start - low) / (high - low) - 1
    angles = np.arcsin(np.clip(sines, -STEEPEST_SINE, STEEPEST_SINE))
    return to_logs(leastsq(residuals, angles, full_output=True)[0])


@typed
def estimate_noise(residuals: Float[np.ndarray, "cells"], parameters: int) -> float:
    """Return the standard deviation of residuals, from the median of their absolute values.

    As many of the smallest as there are parameters, but one, are left out: a fit makes them small.
    """
    ordered = np.sort(np.abs(residuals))[parameters - 1 :]
    return max(float(np.median(ordered)) / NORMAL_QUARTILE, SMALLEST_NOISE)


def find_best(solutions: Iterable[Solution]) -> Solution:
    """Return the solution with the smallest objective."""
    return min(solutions, key=lambda solution: solution.objective)


def _distinct(solutions: Iterable[Solution]) -> list[Solution]:
    """Return one solution of those whose exponents agree to about a hundredth."""
    return list({tuple(np.round(x.log_exponents, 2)): x for x in solutions}.values())
