"""Intervals hold the law that cells were drawn from, and undetermined exponents are reported."""

from dataclasses import replace

import numpy as np
import pytest

from lclm_jax.errors import ConfigError
from lclm_jax.sweeps.analysis.bootstrap import (
    Interval,
    bootstrap,
    estimate,
    estimate_parameters,
    find_undetermined,
)
from lclm_jax.sweeps.analysis.scaling_law import fit
from tests.support.scaling_laws import draw_cells, make_law

FEW = 39  # resamples, whose smallest and largest are the ends of the 95 % interval


def resample(cells, count=FEW):
    law = fit(cells, starts=2)
    return law, bootstrap(cells, law, count)


def test_an_interval_ends_where_a_fortieth_of_the_values_lie_outside():
    values = np.random.default_rng(0).permutation(np.arange(1, 40))
    assert Interval.of(17.0, values) == Interval(17.0, 1.0, 39.0)
    assert Interval.of(17.0, np.arange(1, 200)) == Interval(
        17.0, pytest.approx(5), pytest.approx(195)
    )


def test_most_intervals_hold_the_truth():
    """In the long run 95 % of them do; of 10 sweeps with 16 cells at least 7, and not all 10."""
    truth = make_law("encoder")
    hits = []
    for number in range(10):
        intervals = estimate_parameters(*resample(draw_cells(truth, 4, 0.002, number)))
        hits.append([intervals[name].contains(x) for name, x in truth.parameters.items()])
    assert np.sum(hits, axis=0).min() >= 7
    assert not np.all(hits)


def test_an_interval_is_as_wide_as_the_noise():
    def width(noise):
        law, resamples = resample(draw_cells(make_law("encoder"), 2, noise))
        interval = estimate(lambda x: float(x.predict(encoder=1e9)), law, resamples)
        return interval.high - interval.low

    assert width(0.002) == pytest.approx(4 * width(0.0005), rel=0.2)


def test_predictions_between_the_levels_are_surer_than_beyond():
    law, resamples = resample(draw_cells(make_law("encoder"), 2, 0.002))
    between, beyond = (
        estimate(lambda x, size=size: float(x.predict(encoder=size)), law, resamples)
        for size in (1e7, 1e10)
    )
    assert beyond.high - beyond.low > 3 * (between.high - between.low)


def test_resamples_depend_on_the_seed_only():
    cells = draw_cells(make_law("encoder"), 2, 0.002)
    law = fit(cells, starts=2)
    assert bootstrap(cells, law, 3) == bootstrap(cells[::-1], law, 3)
    assert bootstrap(cells, law, 3, seed=1) != bootstrap(cells, law, 3)


def test_a_wrong_loss_hardly_widens_intervals():
    cells = draw_cells(make_law("encoder"), 4, 0.002)
    wrong = [replace(cells[0], loss=1.3 * cells[0].loss), *cells[1:]]
    widths = []
    for losses in (cells, wrong):
        exponent = estimate_parameters(*resample(losses))["encoder.exponent"]
        widths.append(exponent.high - exponent.low)
    assert widths[1] < 3 * widths[0]


# --- What the cells do not determine ---


def test_exponents_of_a_good_sweep_are_determined():
    assert find_undetermined(*resample(draw_cells(make_law("encoder"), 2, 0.001))) == {}


def test_two_levels_do_not_determine_an_exponent():
    levels = {"encoder": (1e6, 1e7, 1e8), "ratio": (4.0, 16.0)}
    law, resamples = resample(draw_cells(make_law("encoder", "ratio", levels=levels), 2, 0.001))
    undetermined = find_undetermined(law, resamples)
    assert undetermined["ratio"] == "2 values of ratio were trained, and it takes 3"
    exponent = estimate_parameters(law, resamples)["ratio.exponent"]
    assert (exponent.low, exponent.high) == (0.02, 3.0)
    between, beyond = (
        estimate(lambda x, r=r: float(x.predict(encoder=1e7, ratio=r)), law, resamples)
        for r in (16, 64)
    )
    assert beyond.high - beyond.low > 10 * (between.high - between.low)


def test_an_exponent_beyond_the_search_is_reported():
    steep = {"encoder": 6.0}
    law, resamples = resample(
        draw_cells(make_law("encoder", exponents=steep, coefficients={"encoder": 1e-5}), 2, 0.001)
    )
    assert (
        "reaches the bounds of the search, 0.02 and 3"
        in find_undetermined(law, resamples)["encoder"]
    )


def test_a_factor_without_effect_is_reported():
    cells = draw_cells(make_law("encoder", "decoder", coefficients={"encoder": 0.3, "decoder": 0}))
    random = np.random.default_rng(0)
    noisy = [replace(cell, loss=cell.loss * (1 + 0.001 * random.normal())) for cell in cells]
    undetermined = find_undetermined(*resample(noisy))
    assert "decoder" in undetermined and "encoder" not in undetermined


def test_a_floor_that_may_be_zero_is_reported():
    """A loss that falls with the log of the size has no floor, and no smallest exponent."""
    cells = [
        replace(cell, loss=6 - 0.1 * np.log(cell.encoder) + 0.002 * (-1) ** cell.seed)
        for cell in draw_cells(make_law("encoder"), 2)
    ]
    assert find_undetermined(*resample(cells))["floor"] == "its interval reaches 0"


def test_intervals_need_more_cells_than_parameters():
    cells = draw_cells(make_law("encoder", levels={"encoder": (1e6, 1e7, 1e8)}))
    with pytest.raises(ConfigError, match="more cells than the 3 parameters.*got 3"):
        bootstrap(cells, fit(cells, starts=2))
    with pytest.raises(ConfigError, match="expected laws of a bootstrap, got none"):
        estimate_parameters(fit(cells, starts=2), [])
