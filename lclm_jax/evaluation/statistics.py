"""Means, shares and differences with their uncertainty."""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lclm_jax.errors import UserError
from lclm_jax.evaluation.samples import Sample

Z_95 = 1.96  # standard deviations that bound 95 % of a normal distribution
RESAMPLES = 10_000  # of a bootstrap
MIN_DIFFERING = 6  # questions; where fewer differ, all in one direction, p = 2 / 2**n > 0.05
MAX_KINDS = 64  # of clusters, up to which drawing how often each kind comes is faster
MAX_DRAWS = 4_000_000  # drawn at a time, which bounds the memory of a bootstrap


class PairingError(UserError, ValueError):
    """Samples that cannot be compared because they answer different questions."""


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
        low, high = min(p, middle - half), max(p, middle + half)  # p lies inside, but for rounding
        return cls(p, max(0.0, low), min(1.0, high), count)

    def to_dict(self) -> dict[str, float]:
        """Return value, bounds and number of cases."""
        return {"value": self.value, "low": self.low, "high": self.high, "count": self.count}


@dataclass(frozen=True)
class Mean:
    """A mean of `count` numbers with its standard error.

    `value` is NaN where there are no numbers. `standard_error` is None where it cannot be
    estimated: with fewer than two numbers, or two clusters. `clusters` is the number of clusters;
    None where each number is one of its own.
    """

    value: float
    standard_error: float | None
    count: int
    clusters: int | None = None

    @property
    def share_of_all_or_none(self) -> Proportion | None:
        """The mean of scores that are all 0 or all 1, with its interval; None of other scores.

        Their standard error is 0, which says nothing of further questions. Clusters, which may
        be right or wrong as a whole, are counted in place of numbers.
        """
        if self.standard_error != 0 or self.value not in (0, 1):
            return None
        cases = self.clusters or self.count
        return Proportion.of(self.value * cases, cases)

    @classmethod
    def of(cls, values: Iterable[float], clusters: Sequence[Hashable] | None = None) -> "Mean":
        """Return the mean of the finite values.

        Values of one cluster may depend on each other, as the scores of questions about one
        document do. The standard error is then the cluster-robust one, with the factor G/(G-1) for
        G clusters; without clusters it is the usual s/sqrt(n).
        """
        array = np.asarray(list(values), np.float64)
        is_finite = np.isfinite(array)
        numbers = _number_clusters(range(len(array)) if clusters is None else clusters)[is_finite]
        array = array[is_finite]
        if not len(array):
            return cls(math.nan, None, 0)
        mean = float(array.mean())
        sums = _sum_by_cluster(array - mean, numbers)
        group_count = len(sums)
        if group_count < 2:
            return cls(mean, None, len(array))
        variance = group_count / (group_count - 1) * float(np.square(sums).sum())
        count = len(array)
        clusters_known = None if group_count == count else group_count
        return cls(mean, math.sqrt(variance) / count, count, clusters_known)

    @classmethod
    def of_samples(cls, samples: Sequence[Sample]) -> "Mean":
        """Return the mean score of samples, clustered by their tag `cluster`."""
        return cls.of([sample.score for sample in samples], [_cluster(s) for s in samples])

    @classmethod
    def of_means(cls, means: Sequence["Mean"]) -> "Mean":
        """Return the mean of independent means, each with the same weight (a macro mean)."""
        if not means:
            return cls(math.nan, None, 0)
        value = sum(mean.value for mean in means) / len(means)
        errors = [mean.standard_error for mean in means]
        known = [error for error in errors if error is not None]
        combined = math.hypot(*known) / len(means) if len(known) == len(means) else None
        count = sum(mean.count for mean in means)
        clusters = sum(mean.clusters or mean.count for mean in means)
        return cls(value, combined, count, None if clusters == count else clusters)


@dataclass(frozen=True)
class Difference:
    """A difference of two means over the same `count` questions, with its 95 % interval.

    `low` and `high` are None where there are fewer than two questions, or two clusters.
    `differing` is the number of questions, or of clusters, whose scores differ; None for all.
    """

    value: float
    low: float | None
    high: float | None
    count: int
    differing: int | None = None

    @property
    def is_clear(self) -> bool:
        """True where zero lies outside the interval, and enough questions differ to say so.

        Resamples of a few questions that all differ alike are equal, so that their interval has no
        width. A sign test needs MIN_DIFFERING of them.
        """
        differing = self.count if self.differing is None else self.differing
        if self.low is None or self.high is None or differing < MIN_DIFFERING:
            return False
        return not self.low <= 0 <= self.high


def paired_difference(a: Sequence[Sample], b: Sequence[Sample], seed: int = 0) -> Difference:
    """Return by how much the scores of `a` exceed those of `b`, which answer the same questions.

    The interval is that of a paired bootstrap with 10,000 resamples: its percentiles, widened by
    sqrt(G/(G-1)) for G clusters, without which intervals of few questions are too narrow, but not
    beyond the smallest and the largest difference. Questions with equal tags `cluster` are drawn
    together. Questions of several tasks or lengths are drawn within each, and every task and length
    has the same weight. A question without a finite score on either side is left out.

    Raises PairingError unless both sides hold the same questions, each once.
    """
    pairs = pair_samples(a, b)
    strata: dict[Hashable, list[tuple[Sample, Sample]]] = defaultdict(list)
    for first, second in pairs:
        if math.isfinite(first.score) and math.isfinite(second.score):
            strata[first.task, first.length].append((first, second))
    if not strata:
        return Difference(math.nan, None, None, 0, 0)

    random = np.random.default_rng(seed)
    values, resampled, differing = [], np.zeros(RESAMPLES), 0
    for stratum in strata.values():
        differences = np.array([first.score - second.score for first, second in stratum])
        numbers = _number_clusters([_cluster(first) for first, _ in stratum])
        values.append(float(differences.mean()))
        differing += int(np.count_nonzero(_sum_by_cluster(differences, numbers)))
        resampled += _resample_means(differences, numbers, random) / len(strata)
    low, high = np.quantile(resampled, [0.025, 0.975])
    value = sum(values) / len(values)
    count = sum(len(stratum) for stratum in strata.values())
    if not math.isfinite(low):
        return Difference(value, None, None, count, differing)
    return Difference(value, float(low), float(high), count, differing)


def pair_samples(a: Sequence[Sample], b: Sequence[Sample]) -> list[tuple[Sample, Sample]]:
    """Return the samples of each question side by side.

    Raises PairingError unless both sides hold the same questions, each once.
    """
    left, right = index_samples(a), index_samples(b)
    if unpaired := left.keys() ^ right.keys():
        example = min(unpaired, key=str)
        raise PairingError(
            f"expected answers to the same questions, got {len(left.keys() - right.keys())} that "
            f"only the first side answers and {len(right.keys() - left.keys())} that only the "
            f"second does, such as {example[0]} number {example[2]}; evaluate both with the same "
            "tasks, lengths and limit"
        )
    return [(left[key], right[key]) for key in left]


def index_samples(samples: Iterable[Sample]) -> Mapping[tuple, Sample]:
    """Return samples by their question. Raises PairingError where one is answered twice."""
    result: dict[tuple, Sample] = {}
    for sample in samples:
        if sample.question in result:
            raise PairingError(
                f"expected one answer to each question, got two to {sample.task} number "
                f"{sample.number} in the view {sample.view!r}; pass the samples of one view"
            )
        result[sample.question] = sample
    return result


def _cluster(sample: Sample) -> Hashable:
    """Return what questions that depend on each other have in common."""
    cluster = sample.tags.get("cluster")
    return sample.question if cluster is None else str(cluster)


def _number_clusters(clusters: Iterable[Hashable]) -> np.ndarray:
    """Return clusters as integers from 0."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], int)


def _sum_by_cluster(values: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return the sum of the values of every cluster that has some."""
    sizes = np.bincount(numbers)
    return np.bincount(numbers, weights=values)[sizes > 0]


def _resample_means(
    values: np.ndarray, numbers: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Return the mean of each resample of clusters [RESAMPLES], NaN for fewer than two clusters."""
    clusters = np.stack([np.bincount(numbers, weights=values), np.bincount(numbers)])
    group_count = clusters.shape[1]
    if group_count < 2:
        return np.full(RESAMPLES, math.nan)
    sums, sizes = _draw_totals(clusters, random)
    mean = values.mean()
    widened = mean + (sums / sizes - mean) * math.sqrt(group_count / (group_count - 1))
    return np.clip(widened, values.min(), values.max())


def _draw_totals(clusters: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Draw as many clusters as there are, with replacement, and return the totals [2, RESAMPLES].

    `clusters` [2, G] has the sum and the size of each.
    """
    group_count = clusters.shape[1]
    kinds, counts = np.unique(clusters, axis=1, return_counts=True)
    if kinds.shape[1] <= MAX_KINDS:  # as with right and wrong: the counts of kinds are drawn
        return kinds @ random.multinomial(group_count, counts / group_count, RESAMPLES).T
    rows = max(1, MAX_DRAWS // group_count)
    starts = range(0, RESAMPLES, rows)
    draws = (
        random.integers(0, group_count, (min(rows, RESAMPLES - start), group_count), np.int32)
        for start in starts
    )
    return np.concatenate([clusters[:, chunk].sum(-1) for chunk in draws], axis=1)
