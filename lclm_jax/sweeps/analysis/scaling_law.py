"""Scaling laws: loss as a floor and powers of the sizes, the training tokens and the ratio.

    loss = floor + A / encoder^a + B / decoder^b + C / tokens^c + R * ratio^r

A sweep may vary some of these factors only; the law then has terms for these.
"""

import logging
import math
from collections.abc import Collection, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import qmc

from lclm_jax.config.settings import NotNegative, Positive, Seed, Settings
from lclm_jax.config.values import from_dict, to_dict
from lclm_jax.errors import ConfigError
from lclm_jax.sweeps.analysis.variable_projection import LOG_BOUNDS, Problem, Solution, search

log = logging.getLogger(__name__)
Factor = Literal["encoder", "decoder", "tokens", "ratio"]
FACTORS: tuple[Factor, ...] = get_args(Factor)
RISING = ("ratio",)  # factors with which the loss rises
STARTS = 16  # of a search; two or three would do for most sweeps
EQUAL = 1e-9  # relative difference of losses that are the same


@dataclass(frozen=True)
class Observation(Settings):
    """The loss of one trained cell. Raises ConfigError unless all numbers are finite and positive.

    Attributes:
        encoder: its parameters, with or without embeddings, alike in all cells.
        decoder: its parameters, counted in the same way.
        tokens: tokens of text that were trained on, counted alike in all cells.
        ratio: tokens per latent.
        loss: in nats per token, on the same held-out text in all cells.
        seed: of the run.
    """

    encoder: Positive
    decoder: Positive
    tokens: Positive
    ratio: Positive
    loss: Positive
    seed: Seed = 0

    def __post_init__(self):
        if isinstance(self.loss, float) and not math.isfinite(self.loss):
            raise ConfigError(
                f"expected a finite loss of encoder={self.encoder:g}, decoder={self.decoder:g}, "
                f"tokens={self.tokens:g}, ratio={self.ratio:g}, seed={self.seed}, got {self.loss}; "
                "leave runs that diverged out"
            )
        super().__post_init__()

    @property
    def configuration(self) -> tuple[float, ...]:
        """Values of FACTORS, which cells with different seeds share."""
        return tuple(getattr(self, factor) for factor in FACTORS)


@dataclass(frozen=True)
class Term(Settings):
    """A power of one factor: `coefficient * (factor / reference) ** exponent`, or `** -exponent`.

    Attributes:
        factor: its name.
        coefficient: loss that the term adds at the reference, in nats per token.
        exponent: its size; the loss rises with the ratio and falls with all other factors.
        levels: values of the factor in the cells that were fitted, ascending.
    """

    factor: Factor
    coefficient: NotNegative
    exponent: Positive
    levels: tuple[Positive, ...]

    @property
    def sign(self) -> int:
        """1 where the loss rises with the factor, otherwise -1."""
        return 1 if self.factor in RISING else -1

    @property
    def reference(self) -> float:
        """The geometric mean of the smallest and the largest level."""
        return math.sqrt(self.levels[0] * self.levels[-1])

    @property
    def amplitude(self) -> float:
        """The coefficient of the factor itself, such as A in `A / encoder^a`."""
        return self.coefficient * self.reference ** (-self.sign * self.exponent)

    def slope(self, values: ArrayLike) -> np.ndarray:
        """Return the log of values over the reference, with the sign of the power."""
        return self.sign * np.log(np.asarray(values, np.float64) / self.reference)

    def predict(self, values: ArrayLike) -> np.ndarray:
        """Return what the term adds to the loss at these values of its factor."""
        return self.coefficient * np.exp(self.exponent * self.slope(values))


@dataclass(frozen=True)
class Constant(Settings):
    """A factor that has one value in all cells of a sweep, at which alone its law holds."""

    factor: Factor
    value: Positive


@dataclass(frozen=True)
class Law(Settings):
    """A fitted scaling law.

    Attributes:
        floor: loss that no factor of the sweep lowers, in nats per token.
        terms: one for each factor that was fitted.
        constants: factors that did not vary, so that the law has no terms for them.
        noise: standard deviation of relative residuals, prediction / loss - 1, without outliers.
    """

    floor: NotNegative
    terms: tuple[Term, ...]
    constants: tuple[Constant, ...]
    noise: NotNegative

    @property
    def parameters(self) -> dict[str, float]:
        """Floor, coefficients and exponents by name, such as `encoder.exponent`."""
        values = {"floor": self.floor}
        for term in self.terms:
            values[f"{term.factor}.coefficient"] = term.coefficient
            values[f"{term.factor}.exponent"] = term.exponent
        return values

    def term(self, factor: str) -> Term:
        """Return the term of a factor. Raises ConfigError where the law has none."""
        for term in self.terms:
            if term.factor == factor:
                return term
        raise ConfigError(
            f"expected a law with a term for {factor}, got one for "
            f"{', '.join(term.factor for term in self.terms)}; fit cells that vary {factor}"
        )

    def predict(self, **values: ArrayLike) -> np.ndarray:
        """Return the loss at values of factors, such as `encoder=6e8, tokens=[1e9, 1e10]`.

        Arrays are broadcast. Constants may be left out. Raises ConfigError for a factor of a term
        that is missing, for values that are not positive, and for others than those of constants.
        """
        arrays = {factor: _read_values(factor, value) for factor, value in values.items()}
        for term in self.terms:
            if term.factor not in values:
                raise ConfigError(f"expected a value of {term.factor}, which the law depends on")
        for constant in self.constants:
            others = arrays.get(constant.factor, constant.value)
            if not np.allclose(others, constant.value, rtol=EQUAL, atol=0):
                raise ConfigError(
                    f"expected {constant.factor}={constant.value:g}, as in all cells of the law, "
                    f"got {values[constant.factor]}; fit cells that vary {constant.factor}"
                )
        return np.asarray(
            self.floor + sum(term.predict(arrays[term.factor]) for term in self.terms)
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the law as nested dicts and lists, fit for JSON."""
        return to_dict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Law":
        """Return the law that `to_dict` wrote. Raises ConfigError for anything else."""
        return from_dict(cls, values)


def fit(
    observations: Sequence[Observation],
    terms: Collection[str] | None = None,
    seed: int = 0,
    starts: int = STARTS,
) -> Law:
    """Return the law that fits the cells best, by variable projection and a Huber loss.

    Residuals are relative, so that cells of small and large losses count alike, and those of
    outliers count by their size and not its square. Exponents are searched from `starts` points
    that `seed` draws. The order of the observations does not matter.

    Args:
        observations: one for each cell; cells with equal factors and other seeds are repetitions.
        terms: factors to have terms; None for all that vary. A varying factor without a term adds
            to the noise, unless it goes along with another one.
        seed: of the starts.
        starts: number of starts.

    Raises ConfigError for a term whose factor does not vary, for factors that vary together only,
    for fewer configurations than parameters, and for losses that are all equal.
    """
    cells = sorted(observations, key=astuple)
    table = tabulate(cells)
    levels: dict[Factor, tuple[float, ...]] = {x: tuple(np.unique(table[x])) for x in FACTORS}
    varying: list[Factor] = [factor for factor in FACTORS if len(levels[factor]) > 1]
    constants = tuple(Constant(x, levels[x][0]) for x in FACTORS if len(levels[x]) == 1)
    factors = varying if terms is None else _check_terms(terms, varying)
    if terms is None and constants:
        names = ", ".join(f"{constant.factor}={constant.value:g}" for constant in constants)
        log.info("the law has no terms for factors that do not vary: %s", names)
    if not factors:
        raise ConfigError(
            f"expected cells that differ in {', '.join(FACTORS)} or several of these, got "
            f"{len(cells)} that do not; train more cells or name terms"
        )
    drafts = [Term(factor, 0.0, 1.0, levels[factor]) for factor in factors]
    problem = make_problem(cells, drafts)
    _check_design(problem, drafts)

    low, high = LOG_BOUNDS
    points = qmc.LatinHypercube(len(drafts), rng=seed).random(starts)
    solution, noise = search(problem, low + points * (high - low))
    return with_solution(Law(0.0, tuple(drafts), constants, noise), solution)


def tabulate(cells: Sequence[Observation]) -> dict[str, np.ndarray]:
    """Return the values of every factor, in an array over the cells."""
    return {factor: np.array([getattr(cell, factor) for cell in cells]) for factor in FACTORS}


def make_problem(cells: Sequence[Observation], terms: Sequence[Term]) -> Problem:
    """Return the losses of cells and the slopes of their factors."""
    values = tabulate(cells)
    slopes = [term.slope(values[term.factor]) for term in terms]
    return Problem(np.stack(slopes, axis=-1), np.array([cell.loss for cell in cells]))


def with_solution(law: Law, solution: Solution) -> Law:
    """Return the law with the coefficients and exponents of a solution."""
    floor, *coefficients = solution.coefficients
    terms = [
        replace(term, coefficient=coefficient, exponent=exponent)
        for term, coefficient, exponent in zip(
            law.terms, coefficients, np.exp(solution.log_exponents), strict=True
        )
    ]
    return replace(law, floor=floor, terms=tuple(terms))


# --- Checks ---


def _read_values(factor: str, values: ArrayLike) -> np.ndarray:
    """Return values of a factor as an array. Raises ConfigError unless they are positive."""
    if factor not in FACTORS:
        raise ConfigError(f"expected a factor of {', '.join(FACTORS)}, got {factor!r}")
    array = np.asarray(values, np.float64)
    if not np.all(np.isfinite(array) & (array > 0)):
        raise ConfigError(f"{factor} must be positive and finite, got {values}")
    return array


def _check_terms(terms: Collection[str], varying: Sequence[Factor]) -> list[Factor]:
    """Return the factors of `terms` in the order of FACTORS.

    Raises ConfigError for an unknown factor and for one that does not vary.
    """
    if unknown := set(terms) - set(FACTORS):
        raise ConfigError(f"terms must be among {', '.join(FACTORS)}, got {min(unknown)!r}")
    if constant := set(terms) - set(varying):
        raise ConfigError(
            f"expected cells with several values of {min(constant)}, got one value in all of them; "
            "leave it out of terms"
        )
    return [factor for factor in varying if factor in terms]


def _check_design(problem: Problem, terms: Sequence[Term]):
    """Raise ConfigError where no cells, or too few different ones, determine the law."""
    names = ", ".join(term.factor for term in terms)
    configurations = np.unique(problem.slopes, axis=0)
    deviations = configurations - configurations.mean(0)
    if np.linalg.matrix_rank(deviations, tol=EQUAL) < len(terms):
        raise ConfigError(
            f"expected {names} to vary independently, but one of them is a power of the others in "
            "all cells, so that their terms cannot be told apart; leave it out of terms"
        )
    if len(configurations) < problem.parameters:
        raise ConfigError(
            f"expected at least {problem.parameters} configurations for as many parameters of a "
            f"law in {names}, got {len(configurations)}; train more cells or leave out terms"
        )
    if np.ptp(problem.losses) <= EQUAL * problem.losses.max():
        raise ConfigError(
            f"expected losses that differ, got {problem.losses[0]:g} in all "
            f"{len(problem.losses)} cells; check which file the losses are read from"
        )
