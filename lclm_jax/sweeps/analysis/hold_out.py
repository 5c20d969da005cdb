"""Predictions of the loss of cells, by a law that was fitted without them."""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from lclm_jax.errors import ConfigError
from lclm_jax.sweeps.analysis.bootstrap import RESAMPLES, Interval, bootstrap, find_undetermined
from lclm_jax.sweeps.analysis.scaling_law import FACTORS, Law, Observation, fit


@dataclass(frozen=True)
class Prediction:
    """The predicted and the observed loss of one configuration.

    Attributes:
        configuration: values of its factors.
        observed: mean loss of its cells, in nats per token.
        cells: number of its cells, each with another seed.
        predicted: loss by the law, with an interval for the mean of as many cells: it has the
            uncertainty of the law and the noise of the cells.
        spread: standard deviation between seeds, in nats per token; None where it is not known.
    """

    configuration: dict[str, float]
    observed: float
    cells: int
    predicted: Interval
    spread: float | None

    @property
    def error(self) -> float:
        """Predicted less observed loss."""
        return self.predicted.value - self.observed

    @property
    def error_in_spreads(self) -> float | None:
        """The error over the standard deviation between seeds; None where that is not known."""
        return self.error / self.spread if self.spread else None

    @property
    def is_within(self) -> bool:
        """True where the observed loss lies in the interval."""
        return self.predicted.contains(self.observed)


@dataclass(frozen=True)
class HoldOut:
    """A law of all cells but a few, and its predictions of these.

    Attributes:
        law: of the others.
        predictions: one for each configuration, in the order of its factors.
        undetermined: factors whose exponents the others do not determine, with the reasons.
    """

    law: Law
    predictions: tuple[Prediction, ...]
    undetermined: dict[str, str]


def hold_out(
    observations: Sequence[Observation],
    key: str | Callable[[Observation], bool],
    terms: Collection[str] | None = None,
    count: int = RESAMPLES,
    seed: int = 0,
) -> HoldOut:
    """Return predictions of the cells that `key` chooses, by a law of all others.

    Args:
        observations: all cells.
        key: a factor, for the cells at its largest value, or a function that is true of a cell.
        terms: of the law, as in `fit`.
        count: number of resamples.
        seed: of the fit, the resamples and the noise of cells.

    Raises ConfigError where no cell is chosen, and where the others cannot be fitted.
    """
    is_chosen = _at_largest(observations, key) if isinstance(key, str) else key
    chosen = [cell for cell in observations if is_chosen(cell)]
    others = [cell for cell in observations if not is_chosen(cell)]
    if not chosen:
        raise ConfigError(f"expected cells to hold out, got none of {len(observations)}; check key")
    law = fit(others, terms, seed)
    resamples = bootstrap(others, law, count, seed)
    spread = measure_spread(observations)
    random = np.random.default_rng(seed)
    predictions = tuple(
        _predict(law, resamples, cells, spread, random)
        for _, cells in sorted(_group(chosen).items())
    )
    return HoldOut(law, predictions, find_undetermined(law, resamples))


def measure_spread(observations: Sequence[Observation]) -> float | None:
    """Return the relative standard deviation between seeds, pooled over configurations.

    None where no configuration has two cells.
    """
    groups = [np.array([x.loss for x in cells]) for cells in _group(observations).values()]
    freedom = sum(len(losses) - 1 for losses in groups)
    if not freedom:
        return None
    squares = sum(float(np.square(losses / losses.mean() - 1).sum()) for losses in groups)
    return math.sqrt(squares / freedom)


def _group(cells: Sequence[Observation]) -> dict[tuple[float, ...], list[Observation]]:
    """Return the cells of each configuration."""
    groups = defaultdict(list)
    for cell in cells:
        groups[cell.configuration].append(cell)
    return groups


def _at_largest(observations: Sequence[Observation], factor: str) -> Callable[[Observation], bool]:
    """Return a function that is true of cells at the largest value of a factor."""
    if factor not in FACTORS:
        raise ConfigError(f"key must be one of {', '.join(FACTORS)}, or a function, got {factor!r}")
    largest = max((getattr(cell, factor) for cell in observations), default=math.nan)
    return lambda cell: getattr(cell, factor) == largest


def _predict(
    law: Law,
    resamples: Sequence[Law],
    cells: Sequence[Observation],
    spread: float | None,
    random: np.random.Generator,
) -> Prediction:
    """Return the prediction of one configuration, of which there are these cells."""
    configuration: dict[str, float] = dict(zip(FACTORS, cells[0].configuration, strict=True))
    observed = float(np.mean([cell.loss for cell in cells]))
    value = float(law.predict(**configuration))
    noise = (law.noise if spread is None else spread) / math.sqrt(len(cells))
    means = np.array([float(resample.predict(**configuration)) for resample in resamples])
    noisy = means * (1 + noise * random.standard_normal(len(means)))
    return Prediction(
        configuration=configuration,
        observed=observed,
        cells=len(cells),
        predicted=Interval.of(value, noisy),
        spread=None if spread is None else spread * observed,
    )
