"""States of cells, read from files that workers left."""

from lclm_jax.sweeps.workers.failures import Failure, read_failures
from lclm_jax.sweeps.workers.leases import Lease, lease_path, to_text
from lclm_jax.sweeps.workers.states import read_states

RUNNING = Lease("owner", "host-a", 7, counter=12)
FAILED = Lease("owner", "host-b", 8, 3, "failed", "exit code 1\nno memory")
INTERRUPTED = Lease("owner", "host-b", 8, 3, "interrupted")
STOPPING = Lease("owner", "host-b", 8, 3, "stopping")
SETTLED = Lease("owner", "host-b", 8, 3, "settled")


def write(directory, cell: str, *leases: Lease, files: tuple[str, ...] = ()):
    path = directory / "cells" / cell
    path.mkdir(parents=True)
    for generation, lease in enumerate(leases, start=1):
        lease_path(path, generation).write_text(to_text(lease), encoding="utf-8")
    for name in files:
        (path / name).write_text("{}", encoding="utf-8")


def test_a_state_is_waiting_running_finished_or_failed(tmp_path):
    write(tmp_path, "running", RUNNING)
    write(tmp_path, "stopping", STOPPING)
    write(tmp_path, "interrupted", INTERRUPTED)
    write(tmp_path, "tried", FAILED)
    write(tmp_path, "finished", SETTLED, files=("result.json",))
    write(tmp_path, "finished anyhow", RUNNING, files=("result.json", "failure.json"))
    write(tmp_path, "failed", FAILED, FAILED, SETTLED, files=("failure.json",))
    expected = {
        "untouched": ("waiting", 0),
        "running": ("running", 0),
        "stopping": ("running", 0),
        "interrupted": ("waiting", 0),
        "tried": ("waiting", 1),
        "finished": ("finished", 0),
        "finished anyhow": ("finished", 0),
        "failed": ("failed", 2),
    }
    states = read_states(tmp_path, list(expected))
    assert {state.cell: (state.status, len(state.failures)) for state in states} == expected
    untouched, running = states[:2]
    assert (untouched.generation, untouched.lease) == (0, None)
    assert (running.generation, running.lease) == (1, RUNNING)
    assert {path.name for path in (tmp_path / "cells").iterdir()} == set(expected) - {"untouched"}


def test_attempts_are_those_that_failed_and_those_never_released(tmp_path):
    write(tmp_path, "a", FAILED, INTERRUPTED, RUNNING, STOPPING, SETTLED, FAILED, RUNNING)
    cell = tmp_path / "cells" / "a"
    lease_path(cell, 8).write_text("", encoding="utf-8")
    lease_path(cell, 9).write_text("", encoding="utf-8")
    assert read_failures(cell, [path.name for path in cell.iterdir()]) == (
        Failure(1, "host-b", "exit code 1\nno memory"),
        Failure(3, "host-a", "worker 7 on host-a gave no sign of life"),
        Failure(6, "host-b", "exit code 1\nno memory"),
        Failure(7, "host-a", "worker 7 on host-a gave no sign of life"),
        Failure(8, "", "its lease cannot be read"),
    )
