"""Cells: their names, the grid of levels, and sweeps that are refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from lclm_jax.config import ConfigError
from lclm_jax.sweeps.cells import Cell, Expectation, Sweep, grid


@pytest.fixture
def make(config_once):
    def config(window, seed):
        compression = replace(config_once.model.compression, window=window)
        model = replace(config_once.model, compression=compression)
        return replace(config_once, model=model, run=replace(config_once.run, seed=seed))

    return config


def test_a_grid_has_a_cell_for_every_combination_of_levels(make):
    cells = grid(make, window=(16, 32), seed=(0, 1))
    assert [cell.name for cell in cells] == [
        *("window-16.seed-0", "window-16.seed-1"),
        *("window-32.seed-0", "window-32.seed-1"),
    ]
    assert [cell.config.model.compression.window for cell in cells] == [16, 16, 32, 32]
    assert cells[3].levels == {"window": 32, "seed": 1}


def test_a_cell_is_found_by_its_name(make):
    sweep = Sweep(grid(make, window=(16,), seed=(0, 1)))
    assert sweep.cell("window-16.seed-1").config.run.seed == 1
    with pytest.raises(ConfigError, match="no cell 'window-64.seed-1'; its first cells are window"):
        sweep.cell("window-64.seed-1")


def test_cells_need_different_names_and_files_of_these_names(make):
    cells = grid(make, window=(16,), seed=(0,))
    with pytest.raises(ConfigError, match="window-16.seed-0 more than once"):
        Sweep((*cells, *cells))
    with pytest.raises(ConfigError, match="at least one cell"):
        Sweep(())
    with pytest.raises(ConfigError, match="Cell.name"):
        Cell("a/b", cells[0].config, {})


@pytest.mark.parametrize("level", [Path("a"), float("nan"), None, (1, 2)])
def test_levels_are_text_or_numbers(level, make):
    (cell,) = grid(make, window=(16,), seed=(0,))
    with pytest.raises(ConfigError, match="window-16.seed-0.*text or a number as the level of mix"):
        Sweep((replace(cell, levels={"mix": level}),))


def test_no_two_cells_have_the_same_levels(make):
    (cell,) = grid(make, window=(16,), seed=(0,))
    with pytest.raises(ConfigError, match="those of window-16.seed-0 again in again"):
        Sweep((cell, replace(cell, name="again")))


@pytest.mark.parametrize("setting", [{"window": 61}, {"windw": 16}])
def test_a_baseline_and_expectations_are_of_cells(setting, make):
    cells = grid(make, window=(16, 32), seed=(0, 1))
    with pytest.raises(ConfigError, match="baseline: expected levels of a cell, got .*61|windw"):
        Sweep(cells, baseline=setting)
    expectation = Expectation(({"window": 16}, setting), "a guess")
    with pytest.raises(ConfigError, match=r"expectations\[0\].order\[1\]: expected levels"):
        Sweep(cells, expectations=(expectation,))


def test_all_that_a_sweep_writes_is_in_its_directory(make, tmp_path):
    cells = grid(make, window=(16,), seed=(0, 1))
    prepared = Sweep(cells, prepare=lambda config: None).in_directory(tmp_path)
    assert [cell.config.run.directory for cell in prepared.cells] == [
        str(tmp_path / "cells" / cell.name / "run") for cell in cells
    ]
    assert {cell.config.data.directory for cell in prepared.cells} == {str(tmp_path / "data")}


def test_data_that_exists_stays_where_it_is(make, tmp_path):
    cells = grid(make, window=(16,), seed=(0,))
    (cell,) = Sweep(cells).in_directory(tmp_path).cells
    assert cell.config.data.directory == cells[0].config.data.directory


def test_a_control_reads_every_context_as_text(config_once):
    def cell(**changes):
        streams = tuple(replace(x, **changes) for x in config_once.stages[0].streams)
        stages = tuple(replace(stage, streams=streams) for stage in config_once.stages)
        return Cell("cell", replace(config_once, stages=stages), {})

    assert cell(plain_contexts=1.0).is_control
    assert not cell(plain_contexts=0.5).is_control and not cell().is_control
    plain = tuple(replace(stage, compress=False) for stage in config_once.stages)
    assert Cell("cell", replace(config_once, stages=plain), {}).is_control


def test_an_order_is_of_other_factors_than_its_place():
    with pytest.raises(ConfigError, match="got 'window' in both"):
        Expectation(({"window": 16}, {"window": 64}), "a guess", where={"window": 16})
