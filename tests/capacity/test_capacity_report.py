"""The capacity report: growth is reported, finished runs are reused, the page has all figures."""

import json
from pathlib import Path

import pytest

from configs.lclm_0p6b_4b_16x import config as published
from launch.bench import capacity as capacity_report
from launch.bench.capacity import CapacityRun, capacity_runs, find_growth, measure
from lclm_jax.errors import UserError
from lclm_jax.reports.capacity import markdown_table, write_summary

FIGURES = {
    "fits": True,
    "peak_bytes": 10**10,
    "temp_bytes": 10**10,
    "matmul_flops": 1e17,
    "moved_bytes": 1e12,
    "collective_bytes": 10**10,
}


@pytest.mark.parametrize("key", sorted(FIGURES.keys() - {"fits"}))
def test_what_grew_is_named(key):
    grown = {"train": FIGURES | {key: FIGURES[key] * 1.03}}
    assert [line.split()[:2] for line in find_growth({"train": FIGURES}, grown, 0.02)] == [
        ["train:", key]
    ]
    assert not find_growth({"train": FIGURES}, grown, 0.04) and not find_growth(
        grown, {"train": FIGURES}, 0.02
    )


def test_what_no_longer_fits_is_named():
    refused = FIGURES | {"fits": False, "collective_bytes": None}
    assert find_growth({"train": FIGURES}, {"train": refused}, 0.02) == ["train no longer fits"]
    assert not find_growth({"train": refused}, {"train": refused}, 0.02)


def test_runs_have_names_of_their_own():
    names = [run.name for run in capacity_runs()]
    assert len(set(names)) == len(names)
    assert {run.topic for run in capacity_runs()} == {"training", "serving", "contexts", "chips"}
    assert {run.name for run in capacity_runs() if run.gpu} == {
        name for name in names if "h100" in name
    }


def test_a_run_is_made_once_and_its_failure_named(tmp_path, monkeypatch):
    calls = []

    class Done:
        def __init__(self, command, **_):
            calls.append(command)
            self.returncode = 3 if "v5e:1x1" in command else 1
            Path(command[command.index("--json") + 1]).write_text(
                json.dumps(FIGURES), encoding="utf-8"
            )

    monkeypatch.setattr(capacity_report.subprocess, "run", Done)
    run = CapacityRun("small", ("v5e:1x1",), "serving")
    assert measure(run, tmp_path, "python") == measure(run, tmp_path, "python") == FIGURES
    assert len(calls) == 1 and calls[0][-3:] == [
        "configs/lclm_0p6b_4b_16x.py",
        "--slice",
        "v5e:1x1",
    ]
    with pytest.raises(UserError, match=r"--slice v5e:2x2 ended with status 1; see .*other\.log"):
        measure(CapacityRun("other", ("v5e:2x2",), "serving"), tmp_path, "python")
    assert not (tmp_path / "other.json").exists()


def test_the_page(tmp_path):
    estimate = {
        "mfu": 0.4,
        "step_seconds": 9.5,
        "stage_days": 2.0,
        "stage_chip_hours": 3000.0,
        "stage_positions": 5e9,
        "call_seconds": [0.01, 0.02],
    }
    known = FIGURES | {
        "compiler": "libtpu 1",
        "compile_seconds": 7.0,
        "estimate": estimate,
        "hbm_bytes": 95 * 2**30,
        "argument_bytes": 2**30,
        "model_flops": 8e16,
        "positions": 16384,
        "windows": 14,
        "rows": 4,
        "fsdp_budget_bytes": 2e10,
        "collectives": [{"type": "f32", "bytes": 2**29}],
    }
    refused = known | {"fits": False, "collective_bytes": None, "collectives": None}
    whole = {"calls": 17, "call_seconds": [1.8, 1.9]}
    prefill = known | {"estimate": estimate | {"whole": whole}}
    themes = {
        "training": [("v5p:4x4x4", known), ("v5e:1x1", refused)],
        "serving": [("v6e:1x1 --job decode", known), ("v6e:1x1 --job prefill", prefill)],
        "contexts": [("", known | {"context": 2**power}) for power in (12, 20)],
        "chips": [
            ("", known | {"chips": chips, "rows": 4 * chips, "mesh": {"data": 2}})
            for chips in (1, 64)
        ],
    }
    write_summary(tmp_path, themes, published().model)
    page = (tmp_path / "capacity.md").read_text(encoding="utf-8")
    assert (
        "| `v5p:4x4x4` | yes | 1.00 / 9.31 / 9.31 of 95.0 | 1.250 | 9.3 | 0.50 | 0.500 | 9.5 s "
        "| 2.0, 3,000 | 7 s |" in page
    )
    assert "| `v5e:1x1` | **no** |" in page and "nothing was executed" in page
    assert (
        "10 ms to 20 ms | – | 7 s |" in page
        and "10 ms to 20 ms | 1.8 s to 1.9 s in 17 calls | 7 s |" in page
    )
    assert "14 encoder windows" in page and "token budget, 5.00B positions" in page
    assert "a v5p, 4 rows each" in page and "2 on 1, 2 on 64" in page
    assert "| 1,048,576 | 9.31 | 9.00 | 144.00 |" in page
    assert (
        (tmp_path / "capacity_chips.png").stat().st_size
        > 1000
        < (tmp_path / "capacity_contexts.png").stat().st_size
    )


def test_markdown():
    assert markdown_table([{"a": "1", "b": "2"}]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
