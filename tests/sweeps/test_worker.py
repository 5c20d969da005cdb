"""A worker and real children that finish, fail in every way, or are stopped."""

import errno
import json
import signal
import sys
import threading
import time

import pytest

from lclm_jax.config import ConfigError
from lclm_jax.files import DirectoryError
from lclm_jax.sweeps.workers import StopSignal, Worker, end_with_parent, shared_directory
from lclm_jax.sweeps.workers.child import Child
from tests.support.sweep_worker import child_command
from tests.support.sweeps import is_alive, wait_for


def failure_reasons(sweep, cell: str) -> list[str]:
    values = json.loads(sweep.file(cell, "failure.json").read_text(encoding="utf-8"))
    assert values["cell"] == cell
    return [attempt["reason"] for attempt in values["attempts"]]


def test_cells_are_trained_in_order_and_their_output_is_kept(sweep):
    sweep = sweep(b="count 1", a="count 1")
    assert sweep.run()
    sweep.check_finished()
    assert all(len(sweep.children(cell)) == 1 for cell in "ab")
    (b,) = sweep.children("b")
    assert sweep.file("b", "log.txt").read_text(encoding="utf-8") == f"child {b} works\n"
    end, start = sweep.file("b", "result.json"), sweep.file("a", "children")
    assert end.stat().st_mtime_ns < start.stat().st_mtime_ns
    assert sweep.run() and len(sweep.children("a")) == 1, "nothing is done twice"


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("fail the loss is NaN at step 7", "exit code 1, and no result\n{output}the loss is NaN"),
        ("die", "killed by SIGKILL, as the kernel does when memory is short\n{output}"),
        ("end", "exit code 0, and no result\n{output}"),
    ],
)
def test_a_cell_that_fails_is_tried_three_times_and_others_go_on(sweep, behaviour, reason):
    sweep = sweep(bad=behaviour, good="count 1")
    assert sweep.run()
    outputs = [f"child {pid} works\n" for pid in sweep.children("bad")]
    assert len(outputs) == 3
    for attempt, output in zip(failure_reasons(sweep, "bad"), outputs, strict=True):
        assert attempt.startswith(reason.format(output=output).strip())
    bad, good = sweep.states()
    assert (bad.status, good.status) == ("failed", "finished")
    assert sweep.run() and len(sweep.children("bad")) == 3, "it is not tried once more"


def test_a_command_that_does_not_exist_is_a_failed_attempt(tmp_path):
    assert Worker(tmp_path, ["a"], lambda cell: ["/no/such/program"], max_attempts=1).run(
        StopSignal()
    )
    text = (tmp_path / "cells" / "a" / "failure.json").read_text(encoding="utf-8")
    assert "could not be started: [Errno 2] No such file" in text


def stop_when(stop: StopSignal, condition):
    """Ask a worker in this thread to stop, from another, as soon as a condition is true."""

    def ask():
        wait_for(condition)
        stop.received = True

    threading.Thread(target=ask).start()


def test_a_stopped_worker_lets_its_child_save_and_counts_no_attempt(sweep):
    sweep, stop = sweep(a="save"), StopSignal()
    stop_when(stop, sweep.file("a", "ready").exists)
    assert not sweep.run(stop)
    assert sweep.file("a", "saved").exists()
    (state,) = sweep.states()
    assert (state.status, state.lease.state, state.failures) == ("waiting", "interrupted", ())
    sweep.cells["a"] = "count 1"
    assert sweep.run(max_attempts=1)
    sweep.check_finished()


def test_a_child_that_does_not_stop_is_killed_after_the_grace_period(sweep):
    sweep, stop = sweep(a="ignore"), StopSignal()
    stop_when(stop, sweep.file("a", "ready").exists)
    assert not sweep.run(stop, grace=0.2)
    (state,) = sweep.states()
    assert (state.status, state.failures) == ("waiting", ())
    assert not is_alive(*sweep.children("a"))


def test_an_interrupted_child_stops_its_worker_and_is_no_failed_attempt(sweep):
    """A machine about to be taken away must not fail one cell after the other."""
    sweep = sweep(a="interrupt", b="count 1")
    assert not sweep.run()
    a, b = sweep.states()
    assert (a.status, a.lease.state, a.failures) == ("waiting", "interrupted", ())
    assert b.generation == 0
    sweep.cells["a"] = "count 1"
    assert sweep.run(max_attempts=1)
    sweep.check_finished()


def test_a_cell_that_failed_waits_for_another_worker_before_it_is_tried_here_again(sweep):
    sweep = sweep(bad="fail", good="count 1")
    assert sweep.run(retry=3, max_attempts=2)
    last_try = sweep.file("bad", "children").stat().st_mtime_ns
    assert len(sweep.children("bad")) == 2
    assert sweep.file("good", "result.json").stat().st_mtime_ns < last_try


def test_what_a_child_started_does_not_outlive_it(sweep):
    sweep, stop = sweep(a="spawn"), StopSignal()
    stop_when(stop, sweep.file("a", "spawned").exists)
    assert not sweep.run(stop)
    spawned = int(sweep.file("a", "spawned").read_text(encoding="utf-8"))
    wait_for(lambda: not is_alive(spawned))


def test_a_worker_waits_out_a_full_disk(sweep, monkeypatch, caplog):
    sweep = sweep(a="count 1")
    create, failures = shared_directory.create, [errno.ENOSPC, errno.EIO]

    def create_later(*arguments):
        if failures:
            raise OSError(failures.pop(), "broken")
        return create(*arguments)

    monkeypatch.setattr(shared_directory, "create", create_later)
    assert sweep.run()
    sweep.check_finished()
    assert caplog.text.count("broken; trying again in 0.1 s") == 2


def test_signals_are_requests_to_stop_during_the_block_only():
    before = signal.getsignal(signal.SIGTERM)
    for number in (signal.SIGTERM, signal.SIGINT):
        with StopSignal() as stop:
            assert not stop.received
            signal.raise_signal(number)
            stop.pause(600)
            assert stop.received
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_child_that_never_reads_its_pipe_does_not_block_its_worker(tmp_path):
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    with Child(command, tmp_path / "log", 600, time.monotonic) as child:
        for number in range(20_000):  # more than a pipe takes
            child.renew(float(number))
        assert not child.wait(0)


def test_a_child_whose_time_is_over_before_it_works_does_nothing(sweep):
    sweep = sweep(a="count 1")
    sweep.file("a", "").mkdir(parents=True)
    command = child_command(sweep.directory, sweep.cells, "a")
    now = time.monotonic()
    with Child(command, sweep.file("a", "log.txt"), now - 1, lambda: now) as child:
        wait_for(lambda: child.wait(1))
        assert child.describe_end().startswith("killed by SIGKILL")
    assert not sweep.file("a", "children").exists()


def test_a_process_without_a_worker_reads_no_pipe():
    before = threading.active_count()
    end_with_parent()
    assert threading.active_count() == before


def test_settings_that_cannot_be_are_refused(tmp_path):
    for name in ("a/b", "", ".."):
        with pytest.raises(ConfigError, match=r"cells\.0 must be text, a file name"):
            Worker(tmp_path, [name], list)
    with pytest.raises(ConfigError, match="max_attempts must be an integer, from 1"):
        Worker(tmp_path, ["a"], list, max_attempts=0)
    with pytest.raises(DirectoryError, match="expected .*gone to exist"):
        Worker(tmp_path / "gone", ["a"], list).run(StopSignal())
