"""Followers: the other hosts of a slice, in other processes."""

import signal

import pytest

from lclm_jax.distributed.job import JobError
from lclm_jax.sweeps.workers.host import Host, find_host
from lclm_jax.sweeps.workers.slices import Assignment, publish, read_assignment
from tests.support.sweeps import is_alive, wait_for


def follower_children(sweep, cell: str) -> list[int]:
    """Return the children of the follower on host 1, which say so in their log."""
    file = sweep.file(cell, "log-1.txt")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [int(line.split()[1]) for line in lines]


def start_slice(sweep):
    """Start a worker and a follower of one slice."""
    return sweep.start(slice_name="s"), sweep.start(slice_name="s", host=1)


def test_a_follower_trains_what_host_0_trains_and_ends_with_the_sweep(sweep):
    sweep = sweep(a="meet", b="fail x", c="meet")
    worker, follower = start_slice(sweep)
    for cell in "ac":
        wait_for(lambda cell=cell: follower_children(sweep, cell))
        (child,) = follower_children(sweep, cell)
        wait_for(lambda child=child: not is_alive(child))
        assert sweep.file(cell, "result.json").exists()
    assert (worker.wait(), follower.wait()) == (0, 0)
    assert [state.status for state in sweep.states()] == ["finished", "failed", "finished"]
    assert not list(sweep.directory.rglob("overlap"))


def test_a_follower_ends_its_child_when_host_0_gives_no_sign_of_life(sweep):
    sweep = sweep(a="count 1000")
    worker, follower = start_slice(sweep)
    wait_for(lambda: follower_children(sweep, "a"))
    (child,) = follower_children(sweep, "a")
    worker.kill()
    wait_for(lambda: not is_alive(child))
    assert follower.poll() is None and len(follower_children(sweep, "a")) == 1
    worker = sweep.start(slice_name="s")  # as a cluster starts it again
    wait_for(lambda: len(follower_children(sweep, "a")) == 2)
    worker.send_signal(signal.SIGTERM)
    wait_for(lambda: not is_alive(follower_children(sweep, "a")[1]))
    follower.send_signal(signal.SIGTERM)
    assert (worker.wait(), follower.wait()) == (3, 3)


def test_a_killed_follower_takes_its_child_with_it(sweep):
    sweep = sweep(a="count 1000")
    _, follower = start_slice(sweep)
    wait_for(lambda: follower_children(sweep, "a"))
    follower.kill()
    wait_for(lambda: not is_alive(*follower_children(sweep, "a")))


def test_the_newest_assignment_of_a_slice_is_read(tmp_path):
    assert read_assignment(tmp_path, "s") is None
    for generation in (1, 2):
        publish(tmp_path, "s", Assignment("a", generation))
    assert read_assignment(tmp_path, "s") == Assignment("a", 2)
    assert read_assignment(tmp_path, "other") is None
    for damaged in ("", "{", "{}", "null"):
        (tmp_path / "slices" / "s.json").write_text(damaged, encoding="utf-8")
        assert read_assignment(tmp_path, "s") is None


def test_a_slice_is_named_after_where_its_processes_meet(monkeypatch):
    assert find_host() is None
    for name, value in (
        ("COORDINATOR_ADDRESS", "h:80"),
        ("NUM_PROCESSES", "4"),
        ("PROCESS_ID", "3"),
    ):
        monkeypatch.setenv(f"JAX_{name}", value)
    assert find_host() == Host("h-80", 3)
    monkeypatch.setenv("JAX_PROCESS_ID", "4")
    with pytest.raises(JobError, match="expected JAX_PROCESS_ID from 0 to 3"):
        find_host()


def test_a_slice_of_a_slurm_job_has_a_name_of_its_own(monkeypatch):
    values = {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "gpu[01-02]",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "0",
        "SLURM_STEP_NUM_NODES": "2",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert find_host() == Host("gpu01-61447", 1)
