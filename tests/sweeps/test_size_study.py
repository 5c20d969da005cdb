"""A study of sizes recovers the law that its cells follow."""

import dataclasses
from itertools import product

import pytest

from lclm_jax.sweeps.analysis.flop_fit import fit_flops
from lclm_jax.sweeps.cells import Cell
from lclm_jax.sweeps.findings import TrainedCell
from lclm_jax.sweeps.size_study import (
    find_terms,
    merge_tokens,
    observe,
    study_sizes,
    varies_in_size,
)
from tests.support.scaling_laws import draw_cells, make_law
from tests.support.sweep_results import make_result

ENCODERS = (1e5, 4e5, 1.6e6, 6.4e6)
DECODERS = (1e6, 4e6, 1.6e7, 6.4e7)
STEPS = (1e7, 4e7, 1.6e8)


def loss_of(encoder: float, decoder: float, tokens: float) -> float:
    return (
        1.0 + 0.3 * (encoder / 1e6) ** -0.4 + 0.4 * (decoder / 1e7) ** -0.3 + (tokens / 1e7) ** -0.5
    )


def train(config, tokens=(1e7,), encoders=ENCODERS, decoders=DECODERS) -> list[TrainedCell]:
    """Return cells whose losses are those of the law, with two seeds that differ a little."""
    cells = []
    for encoder, decoder, count, seed in product(encoders, decoders, tokens, (0, 1)):
        cell = Cell(f"{len(cells)}", config, {"seed": seed})
        loss = loss_of(encoder, decoder, count) * (1 + 1e-4 * (-1) ** seed)
        result = make_result(cell, loss, int(encoder), int(decoder), int(count / 2))
        cells.append(TrainedCell(cell, result))
    return cells


def test_the_law_is_that_of_the_cells_and_predicts_the_largest(config):
    study = study_sizes(train(config))
    assert {term.factor for term in study.law.terms} == {"encoder", "decoder"}
    assert study.parameters["encoder.exponent"].value == pytest.approx(0.4, rel=0.05)
    assert study.parameters["decoder.exponent"].value == pytest.approx(0.3, rel=0.05)
    assert study.hold_outs.keys() == {"encoder", "decoder"} and not study.missing
    for held_out in study.hold_outs.values():
        assert all(abs(x.error) < 0.002 for x in held_out.predictions)
    assert study.optima.keys() == {None}
    assert all(optimum.partner == "decoder" for optimum in study.optima[None])


def test_where_tokens_vary_they_take_what_the_encoder_leaves(config):
    study = study_sizes(train(config, tokens=STEPS, encoders=ENCODERS[:3], decoders=DECODERS[:3]))
    assert study.optima.keys() == set(DECODERS[:3])
    for optima in study.optima.values():
        assert [optimum.partner for optimum in optima] == ["tokens"] * 3
        sizes = [optimum.encoder.value for optimum in optima]
        assert sizes == sorted(sizes)


def test_the_best_encoder_is_at_the_lowest_point_of_its_curve(config):
    (optimum, *_) = study_sizes(train(config)).optima[None]
    sizes, losses = zip(*optimum.curve, strict=True)
    assert min(loss.value for loss in losses) >= optimum.loss.value - 1e-9
    assert sizes[0] < optimum.encoder.value < sizes[-1] and not optimum.is_at_edge


def test_factors_that_hardly_vary_have_no_term(config):
    cells = train(config, encoders=(1e5, 1.1e5), decoders=DECODERS[:2])
    observations = [observe(cell) for cell in cells]
    assert find_terms(observations) == ["decoder"]
    assert not varies_in_size(cells) and varies_in_size(train(config))


def test_tokens_that_differ_by_packing_are_one_level(config):
    cells = [observe(cell) for cell in train(config, tokens=(1e7, 1.02e7, 2e7))]
    assert {cell.tokens for cell in merge_tokens(cells)} == {1.01e7, 2e7}


def test_flops_are_fitted_exactly_where_they_are_linear():
    cells = draw_cells(make_law("encoder", "decoder", "tokens", "ratio"))
    flops = [
        cell.tokens * (3 * cell.encoder + 2 * cell.decoder + 4 * cell.decoder / cell.ratio + 1e6)
        for cell in cells
    ]
    fitted = fit_flops(cells, flops)
    assert fitted.error < 1e-6
    assert fitted.encoder == pytest.approx(3, rel=1e-4)
    assert fitted.latents == pytest.approx(4, rel=1e-3)
    one_ratio = [dataclasses.replace(cell, ratio=8.0) for cell in cells]
    fitted = fit_flops(
        one_ratio, [cell.tokens * (3 * cell.encoder + cell.decoder) for cell in cells]
    )
    assert fitted.latents == 0 and fitted.decoder == pytest.approx(1, rel=1e-4)
