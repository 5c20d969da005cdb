"""Laws predict the cells that they were fitted without."""

from dataclasses import replace

import pytest

from lclm_jax.errors import ConfigError
from lclm_jax.sweeps.analysis.bootstrap import Interval
from lclm_jax.sweeps.analysis.hold_out import Prediction, hold_out, measure_spread
from tests.support.scaling_laws import LEVELS, draw_cells, make_law

FEW = 39
LARGEST = LEVELS["encoder"][-1]


def test_losses_without_noise_are_predicted():
    cells = draw_cells(make_law("encoder", "decoder"))
    result = hold_out(cells, "encoder", count=3)
    assert [x.configuration["encoder"] for x in result.predictions] == [LARGEST] * 4
    assert [x.configuration["decoder"] for x in result.predictions] == list(LEVELS["decoder"])
    for prediction in result.predictions:
        assert prediction.predicted.value == pytest.approx(prediction.observed, rel=1e-4)
    assert result.law.term("encoder").levels == LEVELS["encoder"][:-1]
    assert result.undetermined == {}


def test_intervals_hold_most_of_the_observed_losses():
    law = make_law("encoder", levels={"encoder": tuple(4.0**i for i in range(10, 16))})
    predictions = [
        hold_out(draw_cells(law, 3, 0.002, number), "encoder", count=FEW).predictions[0]
        for number in range(5)
    ]
    assert sum(prediction.is_within for prediction in predictions) >= 4
    assert all(prediction.cells == 3 for prediction in predictions)


def test_a_loss_that_leaves_the_law_is_not_within_the_interval():
    cells = [
        replace(cell, loss=cell.loss + 0.1 * (cell.encoder == LARGEST))
        for cell in draw_cells(make_law("encoder"), 3, 0.001)
    ]
    (prediction,) = hold_out(cells, "encoder", count=FEW).predictions
    assert not prediction.is_within
    assert prediction.error == pytest.approx(-0.1, abs=0.02)
    assert prediction.error_in_spreads < -10


def test_named_cells_can_be_held_out():
    cells = draw_cells(make_law("encoder", "decoder"), 2, 0.001)
    names = {(LEVELS["encoder"][0], LEVELS["decoder"][3]), (LARGEST, LEVELS["decoder"][0])}
    result = hold_out(cells, lambda x: (x.encoder, x.decoder) in names, count=3)
    assert {
        (x.configuration["encoder"], x.configuration["decoder"]) for x in result.predictions
    } == names


def test_what_the_other_cells_do_not_determine_is_reported():
    levels = {"encoder": (1e6, 1e7, 1e8), "decoder": (1e7, 1e8, 1e9)}
    cells = draw_cells(make_law("encoder", "decoder", levels=levels), 2, 0.001)
    result = hold_out(cells, "encoder", count=FEW)
    assert result.undetermined["encoder"] == "2 values of encoder were trained, and it takes 3"


def test_an_error_is_measured_in_spreads_between_seeds():
    prediction = Prediction({}, 2.0, 3, Interval(2.03, 2.01, 2.05), spread=0.01)
    assert prediction.error_in_spreads == pytest.approx(3.0)
    assert not prediction.is_within
    assert replace(prediction, spread=None).error_in_spreads is None


def test_the_spread_between_seeds_is_pooled_by_hand():
    """Relative deviations of 1 % twice and 2 % twice, with one degree of freedom each."""
    cell = draw_cells(make_law("encoder"))[0]
    pairs = [(1e6, 0.99), (1e6, 1.01), (1e7, 1.96), (1e7, 2.04)]
    cells = [replace(cell, encoder=size, loss=loss) for size, loss in pairs]
    assert measure_spread(cells) == pytest.approx(((2e-4 + 8e-4) / 2) ** 0.5)
    assert measure_spread(cells[::2]) is None


def test_without_repetitions_the_noise_is_that_of_the_law():
    law = make_law("encoder", levels={"encoder": tuple(4.0**i for i in range(10, 16))})
    (prediction,) = hold_out(draw_cells(law, 1, 0.001), "encoder", count=FEW).predictions
    assert prediction.spread is None
    assert prediction.predicted.high - prediction.predicted.low > 0.001


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("width", "key must be one of encoder.*got 'width'"),
        (lambda cell: False, "expected cells to hold out, got none of 4"),
        (lambda cell: True, "expected cells that differ.*got 0"),
    ],
)
def test_keys_that_choose_no_or_all_cells_are_refused(key, message):
    with pytest.raises(ConfigError, match=message):
        hold_out(draw_cells(make_law("encoder")), key)


def test_a_sweep_without_cells_has_none_to_hold_out():
    with pytest.raises(ConfigError, match="got none of 0"):
        hold_out([], "encoder")
