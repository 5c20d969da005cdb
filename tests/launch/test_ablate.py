"""The command that walks a sweep: workers, status and plan."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from launch import ablate
from lclm_jax.config import Config, MeshConfig
from lclm_jax.config.values import from_dict, to_dict
from lclm_jax.model.params import parameter_shapes
from lclm_jax.sweeps.cells import load_sweep
from lclm_jax.sweeps.results import CellResult
from lclm_jax.training.optim import assign_groups
from tests.support.sweep_results import make_result, write_result

SWEEP = """
import json
from dataclasses import replace
from pathlib import Path

from lclm_jax.config import Config
from lclm_jax.config.values import from_dict
from lclm_jax.sweeps.cells import Sweep, grid

CONFIG = from_dict(Config, json.loads(Path({file!r}).read_text(encoding="utf-8")))


def cell(control, seed):
    share = float(control == "text")
    streams = tuple(replace(x, plain_contexts=share) for x in CONFIG.stages[0].streams)
    stage = replace(CONFIG.stages[0], streams=streams, steps=2)
    return replace(CONFIG, stages=(stage,), run=replace(CONFIG.run, seed=seed))


def sweep():
    return Sweep(grid(cell, control=("no", "text"), seed=(0,)))
"""


@pytest.fixture
def sweep(config, tmp_path):
    """The file of a sweep of two cells: one, and its uncompressed control."""
    here = replace(config, mesh=MeshConfig(data=-1, fsdp=1))
    (tmp_path / "config.json").write_text(json.dumps(to_dict(here)), encoding="utf-8")
    file = tmp_path / "sweep.py"
    file.write_text(SWEEP.format(file=str(tmp_path / "config.json")), encoding="utf-8")
    return file


def test_a_worker_trains_every_cell_and_then_has_nothing_to_do(sweep, tmp_path):
    command = [sys.executable, "-m", "launch.ablate", "--sweep", sweep, "--out", tmp_path / "out"]
    (tmp_path / "out").mkdir()
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
        assert done.returncode == 0, done.stderr
        assert "2 finished" in done.stdout
    cells = tmp_path / "out" / "cells"
    results = [
        CellResult.from_dict(json.loads((cells / name / "result.json").read_text("utf-8")))
        for name in ("control-no.seed-0", "control-text.seed-0")
    ]
    assert [result.control for result in results] == [False, True]
    # A result holds the config of the sweep's file, without the paths of this machine.
    configs = [from_dict(Config, dict(result.config)) for result in results]
    assert configs == [cell.config for cell in load_sweep(str(sweep)).cells]
    assert all(result.tokens["trained_tokens"] > 0 for result in results)
    assert results[0].mean("loss", "nothing") > 0 < results[1].mean("loss", "first")
    assert [len(list(cell.glob("lease-*"))) for cell in cells.iterdir()] == [1, 1]


def test_status_and_plan_are_tables(sweep, tmp_path, command, capsys):
    assert command(ablate, "--sweep", sweep, "--out", tmp_path / "out", "--status") == 0
    assert "2 waiting" in capsys.readouterr().out
    assert command(ablate, "--sweep", sweep, "--dry-run") == 0
    table = capsys.readouterr().out
    assert "control-text.seed-0" in table and "together" in table
    assert command(ablate, "--sweep", sweep) == 2


def test_no_cell_is_trained_where_the_data_cannot_be_prepared(sweep, tmp_path):
    text = sweep.read_text(encoding="utf-8").replace("seed=(0,)))", "seed=(0,)), prepare=fail)")
    text += '\n\ndef fail(config):\n    raise ValueError("no [/room] left")\n'
    sweep.write_text(text, encoding="utf-8")
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, "-m", "launch.ablate", "--sweep", sweep, "--out", out]
    ended = subprocess.run(
        [*command, "--attempts", "1"], capture_output=True, encoding="utf-8", check=False
    )
    assert ended.returncode == 2
    assert "the data could not be prepared (exit code 1" in ended.stderr
    assert [cell.name for cell in (out / "cells").iterdir()] == ["data"]
    status = subprocess.run([*command, "--status"], capture_output=True, encoding="utf-8")
    assert "1 failed" in status.stdout and "no [/room] left" in status.stdout


def test_the_report_is_a_page(sweep, tmp_path, command):
    for cell in load_sweep(str(sweep)).cells:
        write_result(tmp_path / "out", make_result(cell, 1.0))
    assert command(ablate, "--sweep", sweep, "--out", tmp_path / "out", "--report") == 0
    assert "Lowest loss" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    picture = (tmp_path / "out" / "settings.svg").read_text(encoding="utf-8")
    assert picture.startswith("<?xml")
    assert command(ablate, "--sweep", sweep, "--out", tmp_path / "empty", "--report") == 2


@pytest.mark.parametrize("name", ["paper_scratch", "paper_sizes", "cpu_scratch", "cpu_sizes"])
def test_sweeps_of_this_repository_have_controls_and_a_baseline(name):
    sweep = load_sweep(f"configs/ablations/{name}.py")
    controls = [cell for cell in sweep.cells if cell.is_control]
    for cell in sweep.cells:
        if not cell.is_control:
            assert (
                any(
                    control.levels.items() - {("control", "text")} <= cell.levels.items()
                    for control in controls
                )
                or cell.levels.get("steps", 600) < 600
            )


@pytest.mark.parametrize("name", ["paper_scratch", "paper_sizes", "cpu_scratch", "cpu_sizes"])
def test_stages_of_these_sweeps_have_a_rate_for_every_parameter(name):
    configs = {
        cell.config.model: cell.config for cell in load_sweep(f"configs/ablations/{name}.py").cells
    }
    for model, config in configs.items():
        for stage in config.stages:
            assign_groups(list(parameter_shapes(model)), stage)


def test_the_papers_search_is_a_sweep():
    sweep = load_sweep("configs/ablations/paper_scratch.py")
    assert len(sweep.cells) == 30
    assert [cell.name for cell in sweep.cells if cell.is_control] == [
        f"control-text.seed-{seed}" for seed in range(3)
    ]
    window = sweep.cell("pooling-mean.window-16.mask-causal.overlap-0.adapter-mlp.ratio-16.seed-1")
    assert window.config.model.compression.window == 16 and window.config.run.seed == 1
    assert window.config.data.row_windows == 64 * sweep.cells[0].config.data.row_windows
