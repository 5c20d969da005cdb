"""The accelerator benchmark on tiny models: every part is measured once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch.bench.accelerator.parent import allowance, check_directory
from launch.bench.accelerator.parts import FAIL, PARTS, SECTIONS, SERVING, Part, choose_parts
from launch.bench.accelerator.record import Record, Result
from launch.bench.accelerator.rows import window_counts
from launch.bench.accelerator.sizes import tiny
from tests.support.paths import ROOT

pytestmark = pytest.mark.image

CHOSEN = choose_parts(SECTIONS, len(tiny().cases))
RESULTS = ["right", *SERVING, *(part.name for part in CHOSEN if part.name != "right")]


def start(directory: Path, *arguments: str) -> str:
    """Run the command, and return what it writes to the terminal."""
    command = [sys.executable, "-m", "launch.bench.accelerator", "--out", str(directory)]
    command += ["--minutes", "60", *arguments]  # a busy machine takes longer than a GPU's eight
    return subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8", check=True
    ).stdout


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """The results of every section, run after one that fails."""
    directory = tmp_path_factory.mktemp("accelerator")
    start(directory, "--sections", ",".join((FAIL, *SECTIONS)))
    return directory


def read(directory: Path) -> dict[str, dict]:
    files = (directory / "results").glob("*.json")
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


def test_every_part_has_results_although_the_first_section_fails(directory):
    results = read(directory)
    assert "fails on purpose" in results[FAIL]["errors"]["the part itself"]
    for name in RESULTS:
        result = results[name]
        assert result["errors"] == {}, "\n".join(result["errors"].values())
        assert (result["skipped"], result["finished"]) == ({}, True), name
        assert result["measurements"] or name == "serving", name
    assert all(check["passed"] for check in results["right"]["measurements"].values())
    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    assert summary["goals"][0]["met"]
    assert list(summary["parts"]) == [*RESULTS, FAIL]
    page = (directory / "index.html").read_text(encoding="utf-8")
    assert all(f"<h2>{name}</h2>" in page for name in RESULTS if name != "serving")
    pictures = {file.name for file in directory.glob("*.png")}
    assert pictures >= {"first_token.png", "decoding.png", "learning.png"}


def test_a_second_start_measures_nothing_anew(directory):
    before = {file: file.stat().st_mtime_ns for file in (directory / "results").iterdir()}
    lines = start(directory)
    assert lines.count("measured before") == len(CHOSEN)
    assert {file: file.stat().st_mtime_ns for file in (directory / "results").iterdir()} == before


class Number(Result):
    def to_dict(self):
        return {"number": 1}


def test_a_measurement_that_fails_is_recorded_and_tried_again(tmp_path):
    file = tmp_path / "part.json"
    record = Record(file, deadline=float("inf"))
    assert record.measure("good", Number)["number"] == 1
    assert record.measure("bad", lambda: 1 / 0) is None
    record.finish()
    kept = json.loads(file.read_text(encoding="utf-8"))
    assert "ZeroDivisionError" in kept["errors"]["bad"]
    assert not kept["finished"]
    again = Record(file, deadline=float("inf"))
    assert again.measure("good", lambda: 1 / 0)["number"] == 1
    again.measure("bad", Number)
    again.finish()
    assert json.loads(file.read_text(encoding="utf-8"))["finished"]


def test_what_does_not_fit_the_time_is_skipped(tmp_path):
    record = Record(tmp_path / "part.json", deadline=0.0)
    assert record.measure("late", Number) is None
    record.finish()
    kept = json.loads((tmp_path / "part.json").read_text(encoding="utf-8"))
    assert list(kept["skipped"]) == ["late"]
    assert not kept["finished"]


def test_time_is_divided_among_the_parts_that_are_left():
    left, seconds = 400.0, []
    for number, part in enumerate(PARTS):
        seconds.append(allowance(part, list(PARTS[number + 1 :]), left))
        left -= seconds[-1]
    assert abs(left) < 1e-6
    assert min(seconds) > 3
    assert allowance(Part("a", 10), [Part("b", 30)], 1000.0) == 250.0


def test_results_of_other_shapes_are_not_mixed(tmp_path):
    check_directory(tmp_path, {"tiny": True, "platform": "cpu"})
    with pytest.raises(ValueError, match="set --out to another directory"):
        check_directory(tmp_path, {"tiny": False, "platform": "gpu"})


def test_an_unknown_section_is_named():
    with pytest.raises(ValueError, match="got speed; separate them with commas"):
        choose_parts(("right", "speed"), 1)


@pytest.mark.parametrize(("windows", "counts"), [(14, [5, 3, 2, 2, 1, 1]), (5, [2, 1, 1, 1])])
def test_all_windows_of_a_row_are_given_to_its_examples(windows, counts):
    assert window_counts(windows) == counts
