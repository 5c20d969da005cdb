"""Means and paired differences have the uncertainty that theory gives them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lclm_jax.evaluation import statistics
from lclm_jax.evaluation.statistics import (
    Difference,
    Mean,
    PairingError,
    Proportion,
    paired_difference,
)
from tests.support.results import make_samples

SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=40)


# --- Means ---


def test_a_mean_has_the_usual_standard_error():
    values = np.random.default_rng(0).normal(3, 2, 50)
    mean = Mean.of(values)
    assert mean.value == pytest.approx(values.mean())
    assert mean.standard_error == pytest.approx(stats.sem(values))
    assert mean.count == 50


def test_scores_of_zero_and_one_have_the_binomial_standard_error():
    mean = Mean.of([1.0] * 30 + [0.0] * 10)
    assert mean.standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 39))


def test_means_of_few_numbers_say_that_they_cannot_tell():
    assert Mean.of([0.5]) == Mean(0.5, None, 1)
    none = Mean.of([])
    assert math.isnan(none.value) and none.standard_error is None and none.count == 0


def test_numbers_that_are_not_finite_are_left_out():
    with_gaps = Mean.of([0.0, math.nan, 1.0, math.inf, 1.0], ["a", "b", "c", "d", "e"])
    assert with_gaps == Mean.of([0.0, 1.0, 1.0])
    assert with_gaps.count == 3


def test_copies_within_a_cluster_do_not_lower_the_standard_error():
    values = np.random.default_rng(1).random(20)
    copies, clusters = np.repeat(values, 5), np.repeat(np.arange(20), 5).tolist()
    assert Mean.of(copies, clusters).standard_error == pytest.approx(stats.sem(values))
    assert Mean.of(copies).standard_error < 0.5 * stats.sem(values)
    assert Mean.of(copies, ["all"] * 100).standard_error is None


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_scores_that_are_all_right_or_all_wrong_have_the_interval_of_their_share(score):
    share = Mean.of([score] * 20).share_of_all_or_none
    assert share == Proportion.of(20 * score, 20)
    assert abs(share.low + share.high - 1) == pytest.approx(0.839, abs=0.001)
    clustered = Mean.of([score] * 20, list("abcd") * 5)
    assert clustered.share_of_all_or_none == Proportion.of(4 * score, 4)
    average = Mean.of_means([clustered, Mean.of([score] * 6)])
    assert average.share_of_all_or_none == Proportion.of(10 * score, 10)
    for mean in (Mean.of([score]), Mean.of([0.5] * 5), Mean.of([0.0, 1.0]), Mean.of([])):
        assert mean.share_of_all_or_none is None


def test_a_macro_mean_gives_every_task_the_same_weight():
    means = [Mean(0.2, 0.03, 10), Mean(0.8, 0.04, 1000)]
    assert Mean.of_means(means) == Mean(0.5, pytest.approx(0.025), 1010)
    assert Mean.of_means([*means, Mean(0.5, None, 1)]).standard_error is None
    assert math.isnan(Mean.of_means([]).value)


@given(SCORES)
def test_a_mean_lies_within_its_values(scores):
    mean = Mean.of(scores)
    assert min(scores) - 1e-9 <= mean.value <= max(scores) + 1e-9
    assert (mean.standard_error is None) == (len(scores) < 2)
    assert not mean.standard_error or mean.standard_error >= 0


# --- Paired differences ---


@pytest.mark.parametrize("decimals", [0, 15])
def test_an_interval_is_that_of_scipy(decimals):
    """Right and wrong answers have few distinct differences, continuous scores many."""
    random = np.random.default_rng(2)
    a = random.random(200).round(decimals)
    b = (0.6 * a + 0.3 * random.random(200)).round(decimals)
    difference = paired_difference(make_samples(a), make_samples(b), seed=3)
    expected = stats.bootstrap((a - b,), np.mean, method="percentile", random_state=4)
    assert difference.value == pytest.approx((a - b).mean())
    assert difference.low == pytest.approx(expected.confidence_interval.low, abs=0.005)
    assert difference.high == pytest.approx(expected.confidence_interval.high, abs=0.005)


def test_draws_in_parts_and_by_kinds_have_one_distribution(monkeypatch):
    a, b = make_samples([1.0, 0.0, 1.0, 1.0] * 30), make_samples([0.0, 0.0, 1.0, 0.0] * 30)
    by_kinds = paired_difference(a, b)
    monkeypatch.setattr(statistics, "MAX_KINDS", 0)
    monkeypatch.setattr(statistics, "MAX_DRAWS", 7 * 120)  # not a divisor of the resamples
    in_parts = paired_difference(a, b)
    assert in_parts.low == pytest.approx(by_kinds.low, abs=0.01)
    assert in_parts.high == pytest.approx(by_kinds.high, abs=0.01)


def test_pairs_are_narrower_than_their_sides():
    scores = np.random.default_rng(5).random(100)
    difference = paired_difference(make_samples(scores + 0.1), make_samples(scores))
    assert difference.low == pytest.approx(0.1) and difference.high == pytest.approx(0.1)
    assert difference.is_clear


def test_intervals_hold_the_true_difference_nineteen_times_in_twenty(monkeypatch):
    """Questions about one document share most of their score; ignoring that covers far less."""
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    random = np.random.default_rng(6)
    documents = [f"document {number // 4}" for number in range(120)]
    inside = {"clustered": 0, "ignored": 0}
    for _ in range(200):
        by_document = np.repeat(random.normal(0.1, 1, 30), 4)
        scores = by_document + random.normal(0, 0.5, 120)
        for name, tags in {"clustered": {"cluster": documents}, "ignored": {}}.items():
            interval = paired_difference(
                make_samples(scores, **tags), make_samples(np.zeros(120), **tags)
            )
            inside[name] += interval.low <= 0.1 <= interval.high
    assert 0.91 <= inside["clustered"] / 200 <= 0.99
    assert inside["ignored"] / 200 < 0.8


def test_tasks_have_equal_weight_however_many_questions_they_have():
    a = make_samples([1.0] * 10, task="ruler_vt") + make_samples([0.0, 1.0] * 500, task="ruler_cwe")
    b = make_samples([0.0] * 10, task="ruler_vt") + make_samples([0.0] * 1000, task="ruler_cwe")
    difference = paired_difference(a, b)
    assert difference.value == pytest.approx(0.75) and difference.count == 1010
    half = 1.96 * math.sqrt(0.25 / 999) / 2
    assert difference.low == pytest.approx(0.75 - half, abs=0.002)


def test_an_interval_ends_where_differences_end():
    difference = paired_difference(make_samples([0] * 19 + [1]), make_samples([1] * 20))
    assert difference.low == -1 and difference.value == pytest.approx(-0.95)
    assert -0.9 <= difference.high < 0


def test_the_same_seed_gives_the_same_interval():
    random = np.random.default_rng(7)
    a, b = make_samples(random.random(80)), make_samples(random.random(80))
    assert paired_difference(a, b, 1) == paired_difference(a, b, 1)
    assert paired_difference(a, b, 1).low != paired_difference(a, b, 2).low


def test_questions_in_another_order_are_still_paired():
    scores = np.random.default_rng(8).random(30)
    assert paired_difference(make_samples(scores), make_samples(scores)[::-1]) == Difference(
        0, 0, 0, 30, 0
    )


@pytest.mark.parametrize(("count", "is_clear"), [(2, False), (5, False), (6, True)])
def test_a_few_questions_that_all_differ_alike_show_nothing(count, is_clear):
    """The two-sided p of a sign test with n questions in one direction is 2 / 2**n."""
    difference = paired_difference(make_samples([1.0] * count), make_samples([0.0] * count))
    assert difference.low == difference.high == 1 and difference.is_clear == is_clear
    equal = make_samples([1.0] * 100)
    others = paired_difference(
        make_samples([1.0] * count + [0.5] * 100), make_samples([0.0] * count + [0.5] * 100)
    )
    assert others.differing == count and (others.is_clear or not is_clear)
    assert not paired_difference(equal, equal).is_clear


def test_questions_of_a_few_documents_show_nothing():
    documents = [f"document {number % 2}" for number in range(100)]
    a, b = (make_samples([value] * 100, cluster=documents) for value in (0.5, 0.3))
    difference = paired_difference(a, b)
    assert (difference.count, difference.differing) == (100, 2)
    assert difference.low == pytest.approx(0.2) and not difference.is_clear


def test_questions_without_a_score_are_left_out_on_both_sides():
    difference = paired_difference(
        make_samples([1.0, math.nan, 1.0]), make_samples([0.0, 1.0, math.nan])
    )
    assert difference == Difference(1.0, None, None, 1, 1)
    assert math.isnan(paired_difference(make_samples([math.nan]), make_samples([1.0])).value)
    assert not difference.is_clear


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (
            make_samples([1.0] * 3),
            make_samples([1.0] * 2),
            "got 1 that only the first .*_vt number 2",
        ),
        (
            make_samples([1.0], task="ruler_cwe"),
            make_samples([1.0]),
            "1 that only .* 1 that only the second",
        ),
        (
            make_samples([1.0], length=4096),
            make_samples([1.0], length=8192),
            "same tasks, lengths and limit",
        ),
        (
            make_samples([1.0]) * 2,
            make_samples([1.0]),
            "got two to ruler_vt number 0 in the view 'text'",
        ),
    ],
)
def test_other_questions_are_refused(a, b, message):
    with pytest.raises(PairingError, match=message):
        paired_difference(a, b)


@given(
    SCORES.flatmap(
        lambda a: st.tuples(st.just(a), st.lists(st.floats(0, 1), min_size=len(a), max_size=len(a)))
    )
)
def test_a_difference_lies_in_its_interval_and_changes_sign_with_its_sides(pair):
    a, b = map(make_samples, pair)
    difference, opposite = paired_difference(a, b), paired_difference(b, a)
    assert difference.value == pytest.approx(-opposite.value)
    if difference.low is not None:
        assert difference.low - 1e-9 <= difference.value <= difference.high + 1e-9
