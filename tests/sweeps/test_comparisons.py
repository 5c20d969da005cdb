"""Paired comparisons agree with values by hand and with scipy's tests."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lclm_jax.errors import ConfigError
from lclm_jax.sweeps.analysis.comparisons import Record, adjust, check_order, compare

MEAN, CONCAT, EOS = ({"pooling": name} for name in ("mean", "concat", "eos"))


def make_records(tag="pooling", ratio=16, **losses) -> list[Record]:
    """Return a record for every loss of every level of a tag, with the seeds 0, 1, ..."""
    return [
        Record({tag: level, "ratio": ratio, "seed": seed}, {"loss": loss})
        for level, values in losses.items()
        for seed, loss in enumerate(values)
    ]


def test_a_difference_has_the_interval_of_students_t():
    """Differences -1, -2, -3: mean -2, standard error 1 / sqrt(3), t(0.975, 2) = 4.303."""
    records = make_records(mean=[1.0, 2.0, 3.0], concat=[2.0, 4.0, 6.0])
    (comparison,) = compare(records, [(MEAN, CONCAT)], "loss")
    assert comparison.difference == pytest.approx(-2.0)
    assert comparison.low == pytest.approx(-2 - 4.303 / math.sqrt(3), abs=1e-3)
    assert comparison.high == pytest.approx(-2 + 4.303 / math.sqrt(3), abs=1e-3)
    assert (comparison.pairs, comparison.unpaired) == (3, 0)
    assert comparison.p_value == pytest.approx(0.0742, abs=1e-4)
    assert comparison.verdict == "cannot be told"


@pytest.mark.parametrize("count", [2, 3, 5, 12])
def test_p_values_and_intervals_are_those_of_scipy(count):
    a, b = np.random.default_rng(count).normal(2.0, 0.1, (2, count))
    (comparison,) = compare(make_records(mean=a, concat=b), [(MEAN, CONCAT)], "loss")
    expected = stats.ttest_rel(a, b)
    assert comparison.p_value == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval()
    assert (comparison.low, comparison.high) == pytest.approx((interval.low, interval.high))


def test_the_lower_loss_is_better_and_the_lower_score_worse():
    records = make_records(mean=[1.0, 1.1, 1.2], concat=[1.5, 1.61, 1.7])
    for setting, baseline, verdict in [(MEAN, CONCAT, "better"), (CONCAT, MEAN, "worse")]:
        assert compare(records, [(setting, baseline)], "loss")[0].verdict == verdict
    scores = compare(records, [(MEAN, CONCAT)], "loss", lower_is_better=False)
    assert scores[0].verdict == "worse"


def test_noise_that_both_sides_share_does_not_matter():
    noise = np.random.default_rng(0).normal(0, 1, 4)
    own = np.array([0.001, -0.001, 0.002, 0.0])
    records = make_records(mean=3 + noise, concat=3.01 + noise + own)
    assert compare(records, [(MEAN, CONCAT)], "loss")[0].verdict == "better"
    assert stats.ttest_ind(3 + noise, 3.01 + noise + own).pvalue > 0.9


def test_only_cells_that_agree_in_all_other_tags_are_pairs():
    records = [
        *make_records(mean=[1.0, 2.0], concat=[2.0]),
        *make_records(ratio=4, mean=[3.0], concat=[5.0, 9.0]),
        *make_records(ratio=8, eos=[0.0]),
    ]
    (comparison,) = compare(records, [(MEAN, CONCAT)], "loss")
    assert (comparison.pairs, comparison.unpaired) == (2, 2)
    assert comparison.difference == pytest.approx((-1 - 2) / 2)


def test_a_setting_may_have_several_tags():
    records = [
        Record({"pooling": pooling, "window": window, "seed": seed}, {"loss": loss + seed / 10})
        for (pooling, window), loss in {
            ("eos", 16): 1.0,
            ("mean", 16): 2.0,
            ("mean", 64): 4.0,
        }.items()
        for seed in (0, 1)
    ]
    contrast = ({"pooling": "eos", "window": 16}, {"pooling": "mean", "window": 64})
    assert compare(records, [contrast], "loss")[0].difference == pytest.approx(-3.0)
    with pytest.raises(ConfigError, match="of the same tags"):
        compare(records, [({"pooling": "eos", "window": 16}, MEAN)], "loss")


def test_tags_that_follow_from_the_setting_are_named_and_can_be_ignored():
    records = [
        replace(x, tags={**x.tags, "name": f"{x.tags['pooling']}-{x.tags['seed']}"})
        for x in make_records(mean=[1.0, 2.0], concat=[2.0, 4.0])
    ]
    (comparison,) = compare(records, [(MEAN, CONCAT)], "loss")
    assert (comparison.pairs, comparison.separating) == (0, ("name",))
    assert math.isnan(comparison.difference) and comparison.verdict == "cannot be told"
    assert compare(records, [(MEAN, CONCAT)], "loss", ignore=["name"])[0].pairs == 2


@pytest.mark.parametrize(
    ("mean", "concat", "pairs"),
    [
        ([1.0], [2.0], 1),
        ([1.2, 1.3, 1.4], [1.1, 1.2, 1.3], 3),  # differ by rounding only
        ([1.0, 1.0], [1.0, 1.0], 2),
        ([1.0, math.nan], [2.0, 3.0], 1),
        ([], [2.0, 3.0], 0),
    ],
)
def test_pairs_that_do_not_vary_have_no_interval(mean, concat, pairs):
    (comparison,) = compare(make_records(mean=mean, concat=concat), [(MEAN, CONCAT)], "loss")
    assert comparison.pairs == pairs
    assert comparison.low is comparison.high is comparison.p_value is None
    assert comparison.verdict == "cannot be told"


def test_a_family_of_comparisons_needs_smaller_p_values():
    """Differences of 1.5, 2 and 2.5 have p = 0.0202 alone, and twice that beside others."""
    records = make_records(mean=[0.0] * 3, concat=[1.5, 2.0, 2.5], eos=[-1.0, 1.0, 0.2])
    alone = compare(records, [(MEAN, CONCAT)], "loss")[0]
    both = compare(records, [(MEAN, CONCAT), (MEAN, EOS)], "loss")[0]
    assert (
        alone.p_value == alone.adjusted_p_value == both.p_value == pytest.approx(0.0202, abs=1e-4)
    )
    assert both.adjusted_p_value == pytest.approx(2 * alone.p_value)
    assert both.low == alone.low


def test_holms_correction_by_hand():
    """Times 4, 3, 2 and 1 from the smallest to the largest, never below the one before."""
    assert adjust([0.02, 0.005, 0.5, 0.03]) == pytest.approx([0.06, 0.02, 0.5, 0.06])
    assert adjust([0.6, 0.7]) == [1.0, 1.0]
    assert adjust([]) == []


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holms_correction_lies_between_none_and_bonferronis(p_values):
    for p, adjusted in zip(p_values, adjust(p_values), strict=True):
        assert p <= adjusted <= min(1.0, len(p_values) * p) + 1e-12


def test_an_order_holds_is_reversed_or_cannot_be_told():
    noise = np.array([0.0, 0.01, 0.02, 0.01])
    records = make_records(
        mean=1.0 + noise, concat=2.0 + noise[::-1], eos=1.5 + noise, max=1.5 + noise[::-1]
    )
    settings = [MEAN, CONCAT, EOS, {"pooling": "max"}]
    orderings = check_order(records, settings, "loss")
    assert [x.outcome for x in orderings] == ["holds", "reversed", "cannot be told"]
    assert [x.comparison.setting for x in orderings] == settings[:-1]
    assert [x.comparison.baseline for x in orderings] == settings[1:]


def test_the_order_of_the_records_does_not_matter():
    records = make_records(mean=[1.0, 2.3, 3.1], concat=[2.0, 4.7, 6.4])
    assert compare(records[::-1], [(MEAN, CONCAT)], "loss") == compare(
        records, [(MEAN, CONCAT)], "loss"
    )


def test_false_verdicts_are_rarer_than_one_in_twenty():
    random = np.random.default_rng(0)
    contrasts = [(MEAN, CONCAT), (MEAN, EOS), (CONCAT, EOS)]
    verdicts = [
        {x.verdict for x in compare(make_records(mean=a, concat=b, eos=c), contrasts, "loss")}
        for a, b, c in random.normal(size=(100, 3, 3))
    ]
    assert sum(x != {"cannot be told"} for x in verdicts) < 5


@pytest.mark.parametrize(
    ("records", "measure", "message"),
    [
        (make_records(mean=[1.0]), "score", "expected records with the measure 'score'"),
        (make_records("mask", full=[1.0]), "loss", "expected a tag of mask, ratio, seed, got"),
        (2 * make_records(mean=[1.0]), "loss", "expected cells with different tags, got two"),
    ],
)
def test_records_that_cannot_be_compared_are_refused(records, measure, message):
    with pytest.raises(ConfigError, match=message):
        compare(records, [(MEAN, CONCAT)], measure)
