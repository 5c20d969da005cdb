"""The best encoder is that of the closed form, and sizes beyond the sweep are marked."""

from dataclasses import replace

import numpy as np
import pytest

from lclm_jax.errors import ConfigError
from lclm_jax.sweeps.analysis.best_encoder import best_encoder
from lclm_jax.sweeps.analysis.bootstrap import bootstrap
from lclm_jax.sweeps.analysis.scaling_law import fit
from tests.support.scaling_laws import draw_cells, make_law

LAW = make_law("encoder", "tokens")


def count_encoder(*, encoder, decoder, tokens, ratio) -> float:
    """Return the FLOPs of training where only the encoder costs anything."""
    return 6 * encoder * tokens


def count_flops(*, encoder, decoder, tokens, ratio) -> float:
    """Return the FLOPs of training where half of the tokens are context."""
    return 6 * tokens * (encoder / 2 + decoder * (1 / (2 * ratio) + 1 / 2))


def closed_form(law, budget) -> float:
    """Return the size at which A / N^a + C / D^c is lowest where 6 N D is the budget."""
    encoder, tokens = law.term("encoder"), law.term("tokens")
    a, c = encoder.exponent, tokens.exponent
    weight = a * encoder.amplitude / (c * tokens.amplitude)
    return (weight * (budget / 6) ** c) ** (1 / (a + c))


@pytest.mark.parametrize("budget", [1e16, 1e17, 1e18])
def test_the_best_size_is_that_of_the_closed_form(budget):
    (optimum,) = best_encoder(LAW, [LAW], count_encoder, [budget])
    assert optimum.encoder.value == pytest.approx(closed_form(LAW, budget), rel=1e-3)
    assert optimum.partner == "tokens"
    assert 6 * optimum.encoder.value * optimum.partner_value == pytest.approx(budget)
    expected = LAW.predict(encoder=optimum.encoder.value, tokens=optimum.partner_value)
    assert optimum.loss.value == pytest.approx(float(expected), rel=1e-6)


def test_the_best_size_grows_with_the_budget():
    optima = best_encoder(LAW, [LAW], count_flops, np.geomspace(1e16, 1e19, 4))
    sizes = [optimum.encoder.value for optimum in optima]
    assert sizes == sorted(sizes)
    for optimum in optima:
        encoder, tokens = optimum.encoder.value, optimum.partner_value
        cost = count_flops(encoder=encoder, decoder=1e8, tokens=tokens, ratio=8)
        assert cost == pytest.approx(optimum.budget)


def test_beside_a_decoder_that_costs_more_a_larger_encoder_pays():
    """A larger encoder then takes less of the tokens away."""
    alone = best_encoder(LAW, [LAW], count_encoder, [1e17])[0]
    beside = best_encoder(LAW, [LAW], count_flops, [1e17])[0]
    assert beside.encoder.value > alone.encoder.value
    assert beside.loss.value > alone.loss.value


def test_at_fixed_tokens_the_budget_is_shared_by_encoder_and_decoder():
    """Equal terms and equal costs: both are equally large."""
    same = {"encoder": 0.3, "decoder": 0.3}
    levels = {"encoder": (1e6, 1e7, 1e8), "decoder": (1e6, 1e7, 1e8)}
    law = make_law("encoder", "decoder", coefficients=same, exponents=same, levels=levels)
    (optimum,) = best_encoder(
        law,
        [law],
        lambda *, encoder, decoder, tokens, ratio: 2 * tokens * (encoder + decoder),
        [4e16],
    )
    assert optimum.partner == "decoder"
    assert optimum.encoder.value == pytest.approx(1e7, rel=1e-3)
    assert optimum.partner_value == pytest.approx(1e7, rel=1e-2)


def test_the_interval_holds_the_best_size_of_the_true_law():
    cells = draw_cells(LAW, 2, 0.002)
    law = fit(cells, starts=2)
    (optimum,) = best_encoder(law, bootstrap(cells, law, 39), count_encoder, [1e17])
    assert optimum.encoder.low < closed_form(LAW, 1e17) < optimum.encoder.high
    assert optimum.encoder.low < optimum.encoder.value < optimum.encoder.high


def test_values_beyond_those_trained_are_marked():
    budgets = [1e12, 1e17, 1e21]
    assert [x.outside for x in best_encoder(LAW, [LAW], count_encoder, budgets)] == [
        ("encoder", "tokens"),
        (),
        ("encoder", "tokens"),
    ]
    law = make_law("encoder", "tokens", "ratio")
    (optimum,) = best_encoder(law, [law], count_encoder, [1e17], {"ratio": 32})
    assert optimum.outside == ("ratio",)


def test_an_encoder_whose_interval_leaves_the_sweep_is_marked():
    steeper = replace(LAW, terms=(replace(LAW.terms[0], exponent=1.5), LAW.terms[1]))
    (optimum,) = best_encoder(LAW, [LAW, steeper], count_encoder, [3e16])
    assert optimum.encoder.low < 1e7
    assert "encoder" not in best_encoder(LAW, [LAW], count_encoder, [3e16])[0].outside


@pytest.mark.parametrize(
    ("law", "fixed", "budget", "message"),
    [
        (make_law("encoder", "tokens", "decoder"), {}, 1e17, "got none of .*decoder, tokens"),
        (LAW, {"tokens": 1e9}, 1e17, "got none of encoder"),
        (make_law("encoder", "ratio", "tokens"), {"tokens": 1e9}, 1e17, "got none of .*ratio"),
        (make_law("decoder", "tokens"), {}, 1e17, "got none"),
        (make_law("encoder"), {}, 1e17, "got none"),
        (LAW, {}, 1e-9, "expected a budget .*got 1e-09 FLOPs"),
        (LAW, {"decoder": 5e8}, 1e17, "expected decoder=1e\\+08"),
    ],
)
def test_questions_without_an_answer_are_refused(law, fixed, budget, message):
    with pytest.raises(ConfigError, match=message):
        best_encoder(law, [law], count_encoder, [budget], fixed)
