"""Workers in processes that are killed, suspended and stopped."""

import json
import os
import signal

import pytest

from tests.support.sweeps import is_alive, wait_for

HOUR = 3600.0


@pytest.mark.newest
def test_a_killed_worker_gives_its_cell_back_and_its_child_dies(sweep):
    sweep = sweep(a="count 60")
    first = sweep.start()
    wait_for(sweep.file("a", "progress").exists)
    first.kill()
    assert first.wait() == -signal.SIGKILL
    (child,) = sweep.children("a")
    wait_for(lambda: not is_alive(child))
    assert sweep.run()
    sweep.check_finished()
    (state,) = sweep.states()
    assert state.generation == 2 and len(sweep.children("a")) == 2
    (failure,) = state.failures
    assert f"worker {first.pid} on " in failure.reason and "no sign of life" in failure.reason


def test_a_worker_that_is_suspended_gives_up_and_its_child_ends_before_others_start(sweep):
    sweep = sweep(a="count 90")
    first = sweep.start()
    wait_for(sweep.file("a", "progress").exists)
    first.send_signal(signal.SIGSTOP)
    (child,) = sweep.children("a")
    second = sweep.start(offset=5 * HOUR)
    wait_for(lambda: len(sweep.children("a")) == 2)
    assert not is_alive(child)
    first.send_signal(signal.SIGCONT)
    assert (first.wait(), second.wait()) == (0, 0)
    sweep.check_finished()
    assert sweep.states()[0].generation == 2 and len(sweep.children("a")) == 2
    log = (sweep.directory / "worker-0.txt").read_text(encoding="utf-8")
    assert "a: failed: no heartbeat got through for 2 s" in log


def test_a_suspended_child_notices_that_its_time_is_over(sweep):
    """The whole machine is suspended, as by its hypervisor."""
    sweep = sweep(a="count 60")
    first = sweep.start()
    wait_for(sweep.file("a", "progress").exists)
    (child,) = sweep.children("a")
    first.send_signal(signal.SIGSTOP)
    os.kill(child, signal.SIGSTOP)
    second = sweep.start()
    wait_for(lambda: sweep.states()[0].generation == 2)
    os.kill(child, signal.SIGCONT)
    wait_for(lambda: not is_alive(child))
    first.send_signal(signal.SIGCONT)
    assert (first.wait(), second.wait()) == (0, 0)
    assert [state.status for state in sweep.states()] == ["finished"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_worker_hands_its_cell_to_another_at_once(sweep, number):
    sweep = sweep(a="save")
    first = sweep.start()
    wait_for(sweep.file("a", "ready").exists)
    first.send_signal(number)
    assert first.wait() == 3 and sweep.file("a", "saved").exists()
    sweep.cells["a"] = "count 1"
    assert sweep.run(max_attempts=1)
    sweep.check_finished()


def test_workers_with_clocks_hours_apart_share_the_cells(sweep):
    cells = {f"c{number}": "count 3" for number in range(8)}
    sweep = sweep(**cells)
    workers = [sweep.start(offset=offset) for offset in (0, 7 * HOUR, -9 * HOUR)]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    sweep.check_finished()
    leases = [json.loads(path.read_text("utf-8")) for path in sweep.directory.rglob("lease-*")]
    assert len(leases) == len(cells) and {lease["state"] for lease in leases} == {"settled"}


def test_a_cell_that_takes_its_worker_down_each_time_is_not_tried_for_ever(sweep):
    sweep = sweep(a="count 1000")
    for attempt in range(2):
        worker = sweep.start()
        wait_for(lambda attempt=attempt: len(sweep.children("a")) > attempt)
        worker.kill()
    assert sweep.run(max_attempts=2)
    (state,) = sweep.states()
    assert state.status == "failed" and len(state.failures) == 2
    assert len(sweep.children("a")) == 2
