"""Training of a cell: its result, and the views it is scored in."""

from dataclasses import replace

import pytest

from lclm_jax.config import Config, MeshConfig
from lclm_jax.config.values import from_dict
from lclm_jax.data.records import Context, Plain, measure
from lclm_jax.data.records.views import first_tokens
from lclm_jax.sweeps.budget import run_flops
from lclm_jax.sweeps.cells import Cell
from lclm_jax.sweeps.results import CellResult
from lclm_jax.sweeps.training import count_parameters, read_log, train_cell, training_seconds


def as_control(config):
    def plain(stage):
        return replace(stage, streams=tuple(replace(x, plain_contexts=1.0) for x in stage.streams))

    return replace(config, stages=tuple(plain(stage) for stage in config.stages))


@pytest.mark.parametrize("kind", ["cell", "control"])
def test_a_cell_is_trained_scored_and_read_back(config, kind):
    here = replace(config, mesh=MeshConfig())
    changed = here if kind == "cell" else as_control(here)
    cell = Cell(kind, changed, {"pooling": "mean", "seed": 0})
    result = train_cell(cell)
    views = {"cell": {"latents", "nothing"}, "control": {"text", "first", "nothing"}}[kind]
    assert {stream: set(scores) for stream, scores in result.scores.items()} == {
        stream.name: views for stream in config.stages[0].streams
    }
    assert result.control == (kind == "control")
    assert result.steps == 8 and result.seconds > 0
    assert result.tokens["trained_tokens"] > 0
    assert (result.tokens["latents"] > 0) == (kind == "cell")
    assert CellResult.from_dict(result.to_dict()) == result
    assert from_dict(Config, result.config) == changed
    # A finished cell is scored again, not trained again.
    assert train_cell(cell).scores == result.scores


def test_losses_are_weighted_by_tokens():
    scores = {
        "a": {"latents": {"loss": 1.0, "tokens": 30.0}},
        "b": {"latents": {"loss": 3.0, "tokens": 10.0}},
    }
    result = CellResult("x", {}, {}, False, {}, {}, {}, 1.0, 1, 1.0, scores, "cpu", {})
    assert result.mean("loss", "latents") == 1.5
    assert result.mean("loss", "latents", ("b",)) == 3.0


def test_parameters_are_counted_with_and_without_embeddings(config):
    every, layers = count_parameters(config), count_parameters(config, embeddings=False)
    model = config.model
    assert every["encoder"] - layers["encoder"] == model.encoder.vocab * model.encoder.width
    assert every["decoder"] - layers["decoder"] == model.decoder.vocab * model.decoder.width
    assert every["adapter"] == layers["adapter"]


def test_a_control_spends_nothing_on_the_encoder(config):
    assert run_flops(as_control(config)) < run_flops(config)


def test_seconds_of_a_log_are_those_of_its_steps():
    lines = [
        {"stage": "a", "step": 10, "step_seconds": 2.0},
        {"stage": "a", "step": 15, "step_seconds": 1.0},
        {"stage": "b", "step": 4, "step_seconds": 3.0},
    ]
    assert training_seconds(lines) == 20 + 5 + 12


def test_a_log_is_read_without_lines_that_were_cut_short_or_written_again(tmp_path):
    lines = ['{"stage": "a", "step": 1, "x": 1}', '{"stage": "a", "st', '{"stage": "a", "step": 1}']
    (tmp_path / "log.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert read_log(tmp_path / "log.jsonl") == [{"stage": "a", "step": 1}]


def test_first_tokens_take_as_many_positions_as_latents(config):
    record = [Plain(range(3)), Context(range(40)), Context(range(5)), Plain(range(4), trained=True)]
    cut = first_tokens(record, config.model)  # 4 tokens per latent, and two tags
    assert cut == [Plain(range(3)), Plain(range(12)), Plain(range(4)), record[3]]
    assert measure(cut, config.model).positions == measure(record, config.model).positions
