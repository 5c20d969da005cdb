"""Requests for a trace: valid ones are served, invalid ones logged, training continues."""

import os

import jax
import pytest

from lclm_jax.training.profiler import DEFAULT_STEPS, MAX_STEPS, Profiler


@pytest.fixture
def traces(monkeypatch):
    """The directories of the traces that were begun."""
    starts = []
    monkeypatch.setattr(jax.profiler, "start_trace", starts.append)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: None)
    return starts


def steps_traced(profiler: Profiler, steps: int = 8) -> int:
    """Steps that are part of a trace, of a few."""
    traced = 0
    for step in range(steps):
        profiler.before_step(f"stage-{step}")
        traced += profiler.trace is not None
        profiler.after_step(())
    profiler.close()
    return traced


@pytest.mark.parametrize(("text", "steps"), [("2", 2), (" 5\n", 5), ("", DEFAULT_STEPS)])
def test_a_request_is_met_once(tmp_path, traces, text, steps):
    (tmp_path / "profile").write_text(text, encoding="utf-8")
    assert steps_traced(Profiler(tmp_path)) == steps
    assert traces == [tmp_path / "profiles" / "stage-0"] and not (tmp_path / "profile").exists()


@pytest.mark.parametrize(
    "text", ["no number", "-1", "0", "1.5", "²", "٣", "9" * 5000, str(MAX_STEPS + 1), "\udcff"]
)
def test_an_odd_request_is_logged_and_removed(tmp_path, traces, caplog, text):
    (tmp_path / "profile").write_bytes(text.encode(errors="surrogateescape"))
    assert steps_traced(Profiler(tmp_path)) == 0
    assert "expected a number of steps from 1 to" in caplog.text and "goes on" in caplog.text
    assert not traces and not (tmp_path / "profile").exists()


@pytest.mark.parametrize("kind", ["directory", "pipe", "device"])
def test_what_is_no_file_is_logged_once_and_left_alone(tmp_path, traces, caplog, kind):
    request = tmp_path / "profile"
    if kind == "directory":
        request.mkdir()
    elif kind == "pipe":
        os.mkfifo(request)
    else:
        request.symlink_to("/dev/zero")
    assert steps_traced(Profiler(tmp_path)) == 0
    assert caplog.text.count("expected a file with a number of steps") == 1 and not traces
    assert request.exists()


def test_a_request_that_cannot_be_removed_traces_nothing(tmp_path, traces, caplog, monkeypatch):
    (tmp_path / "profile").write_text("2", encoding="utf-8")

    def refuse(self):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(type(tmp_path), "unlink", refuse)
    assert steps_traced(Profiler(tmp_path)) == 0
    assert caplog.text.count("Operation not permitted") == 1 and not traces


@pytest.mark.parametrize("name", ["start_trace", "stop_trace"])
def test_a_trace_that_fails_does_not_end_training(tmp_path, traces, caplog, monkeypatch, name):
    def fail(*_):
        raise RuntimeError("the profiler is in use")

    monkeypatch.setattr(jax.profiler, name, fail)
    (tmp_path / "profile").write_text("2", encoding="utf-8")
    steps_traced(Profiler(tmp_path))
    assert "no trace for" in caplog.text and "the profiler is in use" in caplog.text
