"""The benchmark of inference on tiny models: a part of every kind, measured once."""

import json
from pathlib import Path

import pytest

import launch.bench.inference.__main__ as bench
from launch.bench.inference.parts import PARTS, SECTIONS, choose_parts
from launch.bench.inference.summary import describe_growth, find_figures
from lclm_jax.errors import UserError

# Other ratios and long texts in a store take the same functions as these.
CHOSEN = "first_token.16,first_token.text,questions,agent,batches,long_text.compress,store"
BLOCKED = {"questions", "store"}  # parts that need a store


def read(directory: Path) -> dict[str, dict]:
    files = (directory / "results").glob("*.json")
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


def times(directory: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in (directory / "results").iterdir()}


def test_sections_fail_alone_and_nothing_is_measured_twice(tmp_path, command, capfd):
    arguments = ("--tiny", "--out", tmp_path, "--sections", CHOSEN)
    parts = CHOSEN.split(",")
    (tmp_path / "stores").touch()  # in the place of a directory
    assert command(bench, *arguments) == 0
    results = read(tmp_path)
    assert set(results) == set(parts)
    failed = {name for name, part in results.items() if part["errors"]}
    assert failed == BLOCKED, [results[name]["errors"] for name in failed - BLOCKED]
    assert all(part["finished"] for name, part in results.items() if name not in BLOCKED)
    before = times(tmp_path)

    (tmp_path / "stores").unlink()
    assert command(bench, *arguments) == 0
    results = read(tmp_path)
    assert all(part["finished"] and not part["errors"] for part in results.values())
    changed = {file.stem for file, time in times(tmp_path).items() if before[file] != time}
    assert changed == BLOCKED
    assert capfd.readouterr().out.count("measured before") == len(parts) - len(BLOCKED)

    summary = json.loads((tmp_path / "inference.json").read_text(encoding="utf-8"))
    sections = {figure["section"] for figure in summary["figures"]}
    assert sections == {"first token", "questions", "agent", "batches", "long text", "store"}
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert all(f"<h2>{name}</h2>" in page for name in parts)
    pictures = {file.stem for file in tmp_path.glob("*.png")}
    assert pictures == {"first_token", "speedup", "memory", "batches", "long_text", "store"}
    assert list((tmp_path / "stores").iterdir()) == []

    kept = results["questions"]["measurements"]["from a store, with kept caches"]
    assert kept["positions_read"] < kept["positions"]
    rounds = results["agent"]["measurements"]
    assert rounds["everything again"]["positions_read"] == rounds["only what is new"]["positions"]


def test_results_of_other_shapes_are_not_mixed(tmp_path, command, capsys):
    plan = {"shapes": "small", "platform": "cpu"}
    (tmp_path / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    with pytest.raises(ValueError, match="set --out to another directory"):
        command(bench, "--tiny", "--out", tmp_path)


def test_an_unknown_section_is_named():
    assert choose_parts(SECTIONS) == list(PARTS)
    assert choose_parts(["agent", "first_token.text"]) == ["first_token.text", "agent"]
    with pytest.raises(UserError, match="got speed; separate them with commas"):
        choose_parts(["agent", "speed"])


def test_growth_is_named():
    named = [describe_growth(exponent) for exponent in (-0.2, 0.5, 1.0)]
    assert named == ["constant", "grows as windows^0.50", "linear"]


def test_without_measurements_there_are_no_figures():
    assert list(find_figures({})) == []
