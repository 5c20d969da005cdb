"""Paired comparisons of settings, over cells that agree in everything else, the seed included."""

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from scipy import stats

from lclm_jax.errors import ConfigError

LEVEL = 0.05  # of significance; intervals have 1 - LEVEL
ROUNDING = 1e-9  # relative; differences this close to each other are equal
Setting = Mapping[str, Hashable]  # tags with their values, such as {"pooling": "mean"}
Verdict = Literal["better", "worse", "cannot be told"]
Outcome = Literal["holds", "reversed", "cannot be told"]


@dataclass(frozen=True)
class Record:
    """The measures of one trained cell, such as its loss, and the tags that describe it.

    Tags are what was chosen, the seed included: `{"pooling": "mean", "ratio": 16, "seed": 0}`.
    """

    tags: Mapping[str, Hashable]
    measures: Mapping[str, float]


@dataclass(frozen=True)
class Comparison:
    """A measure of one setting less that of another, over pairs of cells with equal other tags.

    Attributes:
        setting: tags of one side.
        baseline: tags of the other.
        measure: name of the measure.
        difference: mean over the pairs; NaN where there are none.
        low: lower end of its 95 % interval by Student's t; None where there is no interval: for
            fewer than two pairs, and where all pairs differ by the same, as runs do that do not
            depend on their seeds.
        high: upper end of the interval.
        pairs: number of pairs.
        unpaired: number of cells of either side without a counterpart that has the measure.
        separating: other tags that have no value in common on the two sides, so that there are no
            pairs; those that follow from the setting must be ignored.
        p_value: of the t test of no difference; None where there is no interval.
        adjusted_p_value: after Holm's correction over all comparisons made together.
        verdict: on the setting, by the adjusted p-value. The interval is that of this comparison
            alone, and may exclude 0 where it cannot be told which is better.
    """

    setting: Setting
    baseline: Setting
    measure: str
    difference: float
    low: float | None
    high: float | None
    pairs: int
    unpaired: int
    separating: tuple[str, ...] = ()
    p_value: float | None = None
    adjusted_p_value: float | None = None
    verdict: Verdict = "cannot be told"


@dataclass(frozen=True)
class Ordering:
    """Two settings of which the first is expected to be better, and what the cells say."""

    comparison: Comparison  # of the first with the second
    outcome: Outcome


def compare(
    records: Sequence[Record],
    contrasts: Sequence[tuple[Setting, Setting]],
    measure: str,
    lower_is_better: bool = True,
    ignore: Collection[str] = (),
) -> list[Comparison]:
    """Return the comparison of each setting with its baseline, with Holm's correction over all.

    Intervals and tests are those of Student's t for paired samples, which are exact for normal
    differences however few they are. A bootstrap is not: three seeds have ten different resamples,
    whose means never leave the range of the three differences.

    All pairs count alike and as independent. Differences that depend on other tags, such as the
    ratio, widen the interval; pass the records of one ratio to ask about that ratio.

    Args:
        records: all cells; those without the measure, or where it is not finite, have no pair.
        contrasts: pairs of a setting and its baseline, which name the same tags.
        measure: name of the measure.
        lower_is_better: True for losses, False for scores.
        ignore: tags that need not agree, as they follow from others or have no effect.

    Raises ConfigError for a tag or measure that no record has, and for two cells with equal tags.
    """
    if not any(measure in record.measures for record in records):
        raise ConfigError(
            f"expected records with the measure {measure!r}, got none; check its name"
        )
    comparisons = [
        _compare(records, setting, baseline, measure, ignore) for setting, baseline in contrasts
    ]
    adjusted = iter(adjust([x.p_value for x in comparisons if x.p_value is not None]))
    return [
        x if x.p_value is None else _judge(x, next(adjusted), lower_is_better) for x in comparisons
    ]


def check_order(
    records: Sequence[Record],
    settings: Sequence[Setting],
    measure: str,
    lower_is_better: bool = True,
    ignore: Collection[str] = (),
) -> list[Ordering]:
    """Return for adjacent settings, expected from best to worst, whether the cells agree.

    Holm's correction is over all of them. Arguments and errors are those of `compare`.
    """
    outcomes: dict[Verdict, Outcome] = {"better": "holds", "worse": "reversed"}
    return [
        Ordering(comparison, outcomes.get(comparison.verdict, "cannot be told"))
        for comparison in compare(
            records, list(pairwise(settings)), measure, lower_is_better, ignore
        )
    ]


def adjust(p_values: Sequence[float]) -> list[float]:
    """Return p-values after Holm's correction (Scandinavian Journal of Statistics 6, 1979).

    >>> adjust([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    steps = np.maximum.accumulate(np.minimum(factors * np.asarray(p_values)[order], 1))
    adjusted = np.empty(len(p_values))
    adjusted[order] = steps
    return adjusted.tolist()


def _compare(
    records: Sequence[Record],
    setting: Setting,
    baseline: Setting,
    measure: str,
    ignore: Collection[str],
) -> Comparison:
    """Return a comparison without a verdict."""
    if setting.keys() != baseline.keys():
        raise ConfigError(
            f"expected a setting and a baseline of the same tags, got {dict(setting)} and "
            f"{dict(baseline)}; name every tag in both"
        )
    left = _index(records, setting, measure, ignore)
    right = _index(records, baseline, measure, ignore)
    common = left.keys() & right.keys()
    differences = np.sort([left[tags] - right[tags] for tags in common])
    value = float(differences.mean()) if common else math.nan
    comparison = Comparison(
        setting=setting,
        baseline=baseline,
        measure=measure,
        difference=value,
        low=None,
        high=None,
        pairs=len(common),
        unpaired=len(left) + len(right) - 2 * len(common),
        separating=() if common else _find_separating(left, right),
    )
    size = max((abs(left[tags]) for tags in common), default=0.0)
    if len(common) < 2 or np.ptp(differences) <= ROUNDING * size:
        return comparison
    freedom = len(common) - 1
    error = float(differences.std(ddof=1)) / math.sqrt(len(common))
    half = float(stats.t.ppf(1 - LEVEL / 2, freedom)) * error
    p_value = 2 * float(stats.t.sf(abs(value) / error, freedom))
    return replace(comparison, low=value - half, high=value + half, p_value=p_value)


def _index(
    records: Sequence[Record], setting: Setting, measure: str, ignore: Collection[str]
) -> dict[frozenset, float]:
    """Return the measure of every cell of a setting by its other tags.

    Raises ConfigError for a tag that no record has, and for two cells with equal tags.
    """
    for tag in setting:
        if not any(tag in record.tags for record in records):
            known = sorted({name for record in records for name in record.tags})
            raise ConfigError(
                f"expected a tag of {', '.join(known)}, got {tag!r}; check the setting"
            )
    values: dict[frozenset, float] = {}
    for record in records:
        value = record.measures.get(measure, math.nan)
        matches = all(tag in record.tags and record.tags[tag] == setting[tag] for tag in setting)
        if not matches or not math.isfinite(value):
            continue
        hidden = {*setting, *ignore}
        others = frozenset(item for item in record.tags.items() if item[0] not in hidden)
        if others in values:
            raise ConfigError(
                f"expected cells with different tags, got two with {dict(record.tags)}; add a tag "
                "that tells them apart, such as the seed, or ignore fewer"
            )
        values[others] = float(value)
    return values


def _find_separating(left: Collection[frozenset], right: Collection[frozenset]) -> tuple[str, ...]:
    """Return the tags of which the two sides share no value; none where a side has no cells."""
    sides = [{item for tags in side for item in tags} for side in (left, right)]
    names = [{tag for tag, _ in side} for side in sides]
    shared = {tag for tag, _ in sides[0] & sides[1]}
    return tuple(sorted((names[0] & names[1]) - shared)) if left and right else ()


def _judge(comparison: Comparison, adjusted: float, lower_is_better: bool) -> Comparison:
    """Return a comparison with its adjusted p-value and its verdict."""
    verdict: Verdict = "cannot be told"
    if adjusted < LEVEL:
        verdict = "better" if (comparison.difference < 0) == lower_is_better else "worse"
    return replace(comparison, adjusted_p_value=adjusted, verdict=verdict)
