"""`launch.compare` prints paired differences, and names what it cannot compare."""

from dataclasses import replace

import pytest

from launch import compare
from tests.support.results import make_results, make_samples


def test_two_results_are_compared(tmp_path, command, capsys):
    results = make_results(8, ("text", "latents 4x"))
    results.write(tmp_path / "a")
    changed = replace(results, samples=results.samples[:-8], versions={"jax": "0.11.2"})
    changed.write(tmp_path / "b")
    assert command(compare, tmp_path / "a", tmp_path / "b", "--view", "latents 4x") == 0
    written = capsys.readouterr().out
    assert "latents 4x" in written and "mean of 10 tasks" in written
    assert "versions: jax" in written and "0.11.2" in written
    assert f"8 unmatched answers in {tmp_path / 'a'}" in written
    assert f"0 unmatched answers in {tmp_path / 'b'}" in written


@pytest.mark.parametrize("same_name", [True, False])
def test_results_are_called_by_their_directories_where_those_differ(
    same_name, tmp_path, command, capsys
):
    places = [tmp_path / "old" / "x", tmp_path / "new" / ("x" if same_name else "y")]
    for place in places:
        make_results(3, ("text",)).write(place)
    assert command(compare, *places) == 0
    names = "B less A" if same_name else "y less x"
    assert f"difference: {names}" in capsys.readouterr().out


def test_results_without_a_common_question_end_with_an_error(tmp_path, command, capsys):
    results = make_results(3, ("text",))
    results.write(tmp_path / "a")
    replace(results, samples=make_samples([1])).write(tmp_path / "b")
    assert command(compare, tmp_path / "a", tmp_path / "b") == 2
    assert "no question in common" in capsys.readouterr().err
    assert command(compare, tmp_path / "a", tmp_path / "a", "--view", "first 4x") == 2
    assert "the first results have the views text; got --view" in capsys.readouterr().err


def test_a_file_that_was_cut_off_or_is_absent_ends_with_an_error(tmp_path, command, capsys):
    path = make_results(3, ("text",)).write(tmp_path / "a")
    path.write_bytes(path.read_bytes()[:-100])
    assert command(compare, tmp_path / "a", tmp_path / "a") == 2
    assert f"{path} is not JSON" in capsys.readouterr().err
    make_results(3, ("text",)).write(tmp_path / "a")
    assert command(compare, tmp_path / "a", tmp_path / "absent") == 2
    assert "absent: no such file; expected the results" in capsys.readouterr().err
