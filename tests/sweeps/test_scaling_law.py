"""Fits of cells whose losses follow a known law find that law."""

import json
import logging
import math
import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lclm_jax.errors import ConfigError
from lclm_jax.sweeps.analysis.scaling_law import FACTORS, Law, Observation, Term, fit, tabulate
from tests.support.scaling_laws import draw_cells, make_law

CELL = Observation(encoder=1e7, decoder=1e8, tokens=1e9, ratio=8, loss=2.5)
FUZZ = settings(max_examples=int(os.environ.get("LCLM_FUZZ", "10")), deadline=None)


def losses(cells) -> np.ndarray:
    return np.array([cell.loss for cell in cells])


# --- Laws ---


def test_a_law_is_a_floor_and_powers():
    """2 + 0.5 * (2.5e6 / 1e7)^-0.5 + 0.25 * (32 / 8)^1 = 2 + 1 + 1."""
    encoder = Term("encoder", 0.5, 0.5, levels=(1e6, 1e7, 1e8))
    ratio = Term("ratio", 0.25, 1.0, levels=(4, 16))
    law = Law(2.0, (encoder, ratio), (), noise=0.0)
    assert law.predict(encoder=2.5e6, ratio=32) == pytest.approx(4.0)
    assert law.predict(encoder=[2.5e6, 1e7], ratio=32) == pytest.approx([4.0, 3.5])
    assert encoder.amplitude / 2.5e6**0.5 == pytest.approx(1.0)
    assert ratio.amplitude * 32 == pytest.approx(1.0)


def test_a_law_is_the_same_after_json():
    law = make_law("encoder", "ratio")
    assert Law.from_dict(json.loads(json.dumps(law.to_dict()))) == law
    with pytest.raises(ConfigError, match="floor"):
        Law.from_dict(law.to_dict() | {"floor": math.nan})


def test_a_law_predicts_no_other_value_of_a_factor_that_did_not_vary():
    law = make_law("encoder")
    assert law.predict(encoder=1e7) == law.predict(encoder=1e7, decoder=1e8)
    with pytest.raises(ConfigError, match="expected decoder=1e\\+08.*fit cells that vary decoder"):
        law.predict(encoder=1e7, decoder=2e8)


@pytest.mark.parametrize("values", [{}, {"encoder": -1.0}, {"encoder": 1e7, "width": 64}])
def test_a_prediction_needs_a_positive_value_of_every_factor(values):
    with pytest.raises(ConfigError, match="expected|must be positive"):
        make_law("encoder").predict(**values)


# --- Fits ---


def test_losses_without_noise_give_the_law_back():
    truth = make_law(*FACTORS)
    law = fit(draw_cells(truth), starts=3)
    assert law.parameters == pytest.approx(truth.parameters, rel=1e-4)
    assert law.noise < 1e-6


@pytest.mark.parametrize(("noise", "tolerance"), [(0.0005, 0.03), (0.002, 0.1), (0.005, 0.25)])
@pytest.mark.parametrize("number", [0, 1])
def test_exponents_are_recovered_within_the_noise(noise, tolerance, number):
    truth = make_law("encoder", "decoder", "tokens")
    law = fit(draw_cells(truth, 2, noise, number), seed=number, starts=3)
    for term, expected in zip(law.terms, truth.terms, strict=True):
        assert term.exponent == pytest.approx(expected.exponent, rel=tolerance)
    assert law.noise == pytest.approx(noise, rel=0.3)


def test_the_search_does_not_depend_on_where_it_starts():
    cells = draw_cells(make_law("encoder", "decoder"), 2, 0.002)
    first, second = fit(cells, seed=0, starts=2), fit(cells, seed=1, starts=2)
    assert first.parameters == pytest.approx(second.parameters, rel=1e-3)
    assert fit(cells, seed=0, starts=2) == first


def test_two_wrong_losses_do_not_move_the_law():
    cells = draw_cells(make_law("encoder", "decoder"), 2, 0.002)
    wrong = [replace(x, loss=1.3 * x.loss) if i in (3, 20) else x for i, x in enumerate(cells)]
    assert fit(wrong, starts=4).predict(**tabulate(cells)) == pytest.approx(
        fit(cells, starts=4).predict(**tabulate(cells)), rel=0.003
    )


def test_terms_that_are_left_out_are_logged(caplog):
    with caplog.at_level(logging.INFO):
        law = fit(draw_cells(make_law("encoder")))
    assert [term.factor for term in law.terms] == ["encoder"]
    assert "do not vary: decoder=1e+08, tokens=1e+09, ratio=8" in caplog.text


def test_a_factor_that_goes_along_with_another_needs_no_term():
    cells = [replace(x, tokens=20 * x.encoder) for x in draw_cells(make_law("encoder"))]
    law = fit(cells, terms=["encoder"])
    assert law.term("encoder").exponent == pytest.approx(0.35, rel=1e-3)
    assert law.predict(encoder=1e7, tokens=5e9) == law.predict(encoder=1e7)


# --- Properties ---


@st.composite
def laws(draw) -> Law:
    """Laws of one to three factors, with exponents from 0.05 to 2 and all shares of the floor."""
    factors = draw(st.lists(st.sampled_from(FACTORS), min_size=1, max_size=3, unique=True))
    spans = {factor: draw(st.floats(3, 300)) for factor in factors}
    counts = {factor: draw(st.integers(3, 4)) for factor in factors}
    levels = {x: tuple(np.geomspace(10, 10 * spans[x], counts[x]).tolist()) for x in factors}
    return make_law(
        *factors,
        floor=draw(st.floats(0, 3)),
        coefficients={factor: draw(st.floats(0.05, 1)) for factor in factors},
        exponents={factor: draw(st.floats(0.05, 2)) for factor in factors},
        levels=levels,
    )


@pytest.mark.fuzz
@FUZZ
@given(laws())
def test_losses_without_noise_are_predicted_back(law):
    cells = draw_cells(law)
    assert fit(cells, starts=4).predict(**tabulate(cells)) == pytest.approx(losses(cells), rel=1e-4)


@pytest.mark.fuzz
@FUZZ
@given(laws(), st.randoms(use_true_random=False))
def test_the_order_of_the_cells_does_not_matter(law, random):
    cells = draw_cells(law, 1, 0.01)
    shuffled = random.sample(cells, len(cells))
    assert fit(shuffled, starts=2) == fit(cells, starts=2)


@pytest.mark.fuzz
@FUZZ
@given(laws(), st.floats(0.1, 10))
def test_the_law_of_scaled_losses_has_scaled_coefficients(law, factor):
    cells = draw_cells(law, 1, 0.001)
    scaled = [replace(cell, loss=factor * cell.loss) for cell in cells]
    first, second = fit(cells, starts=2), fit(scaled, starts=2)
    assert second.floor == pytest.approx(factor * first.floor, rel=0.01, abs=0.01)
    for term, other in zip(first.terms, second.terms, strict=True):
        assert other.coefficient == pytest.approx(factor * term.coefficient, rel=0.01, abs=0.01)
        assert other.exponent == pytest.approx(term.exponent, rel=0.01)


# --- Errors ---


@pytest.mark.parametrize("loss", [math.nan, math.inf, 0.0, -1.0])
def test_a_loss_that_is_not_a_positive_number_is_refused(loss):
    with pytest.raises(ConfigError, match="loss"):
        replace(CELL, loss=loss)


def test_a_run_that_diverged_is_named():
    with pytest.raises(ConfigError, match="encoder=1e\\+07.*seed=0, got nan; leave runs that div"):
        replace(CELL, loss=math.nan)


@pytest.mark.parametrize(
    ("cells", "terms", "message"),
    [
        ([], None, "expected cells that differ.*got 0"),
        ([CELL, replace(CELL, seed=1)], None, "expected cells that differ.*got 2"),
        (draw_cells(make_law("encoder")), ["ratio"], "several values of ratio, got one"),
        (draw_cells(make_law("encoder")), ["width"], "terms must be among encoder.*got 'width'"),
        (
            draw_cells(make_law("encoder"), seeds=5)[:10],
            None,
            "at least 3 configurations for as many parameters of a law in encoder, got 2",
        ),
        (
            [replace(x, decoder=7 * x.encoder**0.9) for x in draw_cells(make_law("encoder"))],
            None,
            "encoder, decoder to vary independently",
        ),
        (
            [replace(x, loss=2.0) for x in draw_cells(make_law("encoder"))],
            None,
            "losses that differ, got 2 in all 4 cells",
        ),
    ],
)
def test_cells_that_determine_no_law_are_refused(cells, terms, message):
    with pytest.raises(ConfigError, match=message):
        fit(cells, terms)
