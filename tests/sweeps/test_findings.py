"""Findings of a sweep, from results whose losses are known."""

import dataclasses
import json

import pytest

from lclm_jax.reports.sweep_page import gap_closed
from lclm_jax.sweeps.cells import Cell, Expectation, Sweep, control_of
from lclm_jax.sweeps.findings import ResultsError, check_results, read_findings
from lclm_jax.sweeps.results import CellResult
from lclm_jax.sweeps.workers.layout import RESULT, cell_directory
from tests.support.sweep_results import make_result, write_result

LOSSES = {"mean": 1.0, "concat": 1.2, "eos": 1.5}
SEEDS = (0, 1, 2)


def make_sweep(config, **options) -> Sweep:
    cells = [
        Cell(f"{pooling}-{seed}", config, {"pooling": pooling, "seed": seed})
        for pooling in LOSSES
        for seed in SEEDS
    ]
    controls = [control_of(cells[0], seed=seed) for seed in SEEDS]
    return Sweep((*cells, *controls), **options)


def write_results(sweep: Sweep, directory, left_out=()):
    for cell in sweep.cells:
        if cell.name in left_out:
            continue
        seed = cell.levels["seed"]
        loss = 0.5 if cell.is_control else LOSSES[cell.levels["pooling"]]
        write_result(directory, make_result(cell, loss + 0.3 * seed + 0.001 * seed**2))


def test_settings_are_ordered_by_loss_and_beside_their_controls(config, tmp_path):
    sweep = make_sweep(config)
    write_results(sweep, tmp_path, left_out=["mean-2"])
    findings = read_findings(sweep, tmp_path)
    assert findings.unfinished == ("mean-2",)
    assert [x.levels["pooling"] for x in findings.settings] == ["mean", "concat", "eos"]
    assert [len(x.cells) for x in findings.settings] == [2, 3, 3]
    first = findings.settings[0].cells[0]
    assert first.score("loss", "text") == 0.5 and first.score("loss", "nothing") == 4.0
    assert gap_closed(first) == pytest.approx((4.0 - 1.0) / (4.0 - 0.5))
    assert findings.settings[1].cells[1].control.levels["seed"] == 1


def test_effects_are_those_of_pairs_of_seeds(config, tmp_path):
    sweep = make_sweep(config)
    write_results(sweep, tmp_path)
    effects = {x.setting["pooling"]: x for x in read_findings(sweep, tmp_path).effects}
    assert effects.keys() == {"concat", "eos"}
    assert effects["concat"].difference == pytest.approx(0.2)
    assert effects["concat"].pairs == 3


def test_the_baseline_may_be_another_level(config, tmp_path):
    sweep = make_sweep(config, baseline={"pooling": "eos"})
    write_results(sweep, tmp_path)
    effects = {x.setting["pooling"]: x.difference for x in read_findings(sweep, tmp_path).effects}
    assert effects == {"mean": pytest.approx(-0.5), "concat": pytest.approx(-0.3)}


def test_expectations_are_checked_where_their_cells_are_finished(config, tmp_path):
    order = tuple({"pooling": pooling} for pooling in ("concat", "mean", "eos"))
    known = Expectation(order, "a guess")
    unfinished = Expectation(order[:2], "another", where={"seed": 2})
    sweep = make_sweep(config, expectations=(known, unfinished))
    write_results(sweep, tmp_path, left_out=("concat-2",))
    checked = read_findings(sweep, tmp_path).expectations
    assert [len(x.orderings) for x in checked] == [2, 0]
    differences = [x.comparison.difference for x in checked[0].orderings]
    assert differences == [pytest.approx(0.2), pytest.approx(-0.5)]


def test_results_of_other_levels_are_refused(config, tmp_path):
    sweep = make_sweep(config)
    write_results(sweep, tmp_path)
    changed = dataclasses.replace(sweep.cells[0], levels={"pooling": "max", "seed": 0})
    with pytest.raises(ResultsError, match="got one of .*'mean'.*remove the cell's directory"):
        read_findings(Sweep((changed,)), tmp_path)


def test_first_tokens_of_another_ratio_stand_beside_no_cell(config, tmp_path):
    compression = dataclasses.replace(config.model.compression, ratio=8)
    wide = dataclasses.replace(
        config, model=dataclasses.replace(config.model, compression=compression)
    )
    cells = (Cell("a", config, {"ratio": 4, "seed": 0}), Cell("b", wide, {"ratio": 8, "seed": 0}))
    sweep = Sweep((*cells, control_of(cells[0], seed=0)))
    for cell in sweep.cells:
        write_result(tmp_path, make_result(cell, 1.0))
    first = [x.score("loss", "first") for x in read_findings(sweep, tmp_path).cells]
    assert first == [3.0, None]


def test_cells_trained_with_another_config_are_named(config, tmp_path):
    sweep = make_sweep(config)
    write_results(sweep, tmp_path)
    assert read_findings(sweep, tmp_path).outdated == ()
    run = dataclasses.replace(config.run, seed=7)
    changed = dataclasses.replace(sweep.cells[1], config=dataclasses.replace(config, run=run))
    sweep = dataclasses.replace(sweep, cells=(sweep.cells[0], changed, *sweep.cells[2:]))
    assert read_findings(sweep, tmp_path / "").outdated == ("mean-1",)
    with pytest.raises(ResultsError, match="1 of 12 cells, such as mean-1; remove"):
        check_results(sweep, tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"cell": 1}', "\x00"])
def test_damaged_results_are_named(content, config, tmp_path):
    sweep = make_sweep(config)
    write_results(sweep, tmp_path)
    file = cell_directory(tmp_path, "mean-1") / RESULT
    file.write_text(content, encoding="utf-8")
    for read in (read_findings, check_results):
        with pytest.raises(ResultsError, match=f"{file}.*remove the cell's directory"):
            read(sweep, tmp_path)


def test_a_sweep_without_results_has_no_findings(config, tmp_path):
    with pytest.raises(ResultsError, match="train some first"):
        read_findings(make_sweep(config), tmp_path)


def test_a_result_is_what_its_file_says(config, tmp_path):
    cell = make_sweep(config).cells[0]
    write_result(tmp_path, make_result(cell, 1.25))
    text = (cell_directory(tmp_path, cell.name) / RESULT).read_text(encoding="utf-8")
    assert CellResult.from_dict(json.loads(text)).mean("loss", "latents") == 1.25
