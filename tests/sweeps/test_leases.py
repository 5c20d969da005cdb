"""Leases: one owner for a generation, and others that wait on their own clocks only."""

import errno
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from lclm_jax.config import ConfigError
from lclm_jax.sweeps.workers import shared_directory
from lclm_jax.sweeps.workers.cell_queue import CellQueue
from lclm_jax.sweeps.workers.intervals import Intervals
from lclm_jax.sweeps.workers.leases import (
    Lease,
    LeaseExpired,
    LeaseLost,
    claim,
    lease_path,
    newest_generation,
    parse_lease,
    to_text,
)

INTERVALS = Intervals()  # heartbeats each 10 s, expiry after 30 s, stale after 45 s
ROUNDS = 30
WORKERS = 4
LEASE = Lease("owner", "host", 1)


class Clock:
    """A clock that tests set."""

    def __init__(self, time: float = 0.0):
        self.time = time

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def cell(tmp_path):
    path = tmp_path / "cells" / "a"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def owned(cell, clock):
    return claim(cell, 1, LEASE, clock, INTERVALS)


def read(cell, generation: int) -> Lease | None:
    return parse_lease(shared_directory.read(lease_path(cell, generation)))


def queue(cell, clock, max_attempts: int = 3) -> CellQueue:
    """The queue of a worker of a sweep with one cell."""
    return CellQueue(cell.parents[1], ["a"], max_attempts, clock, INTERVALS)


def test_a_lease_is_the_same_after_writing_and_reading():
    lease = Lease("owner", "host", 7, 3, "failed", "exit code 1\nä")
    assert parse_lease(to_text(lease)) == lease == Lease.from_dict(lease.to_dict())
    for damaged in (None, "", "{", "[]", "3", '{"owner": 1, "color": 2}', "\ufffd"):
        assert parse_lease(damaged) is None


def test_the_newest_generation_is_that_of_the_highest_number():
    assert newest_generation([]) == newest_generation(["lease-1.json", "log.txt"]) == 0
    names = ["lease-000009.json", "lease-1000000.json", "lease-000010.json.unfinished"]
    assert newest_generation(names) == 1_000_000


def test_of_workers_that_claim_at_once_one_wins(tmp_path):
    cells = [f"{number}" for number in range(ROUNDS)]
    for name in cells:
        (tmp_path / "cells" / name).mkdir(parents=True)
    barrier = threading.Barrier(WORKERS)

    def claim_all(_) -> list:
        leases = []
        for name in cells:
            barrier.wait()
            leases.append(CellQueue(tmp_path, [name], 3, Clock(), INTERVALS).claim_next())
        return leases

    with ThreadPoolExecutor(WORKERS) as pool:
        claimed = list(pool.map(claim_all, range(WORKERS)))
    for number, name in enumerate(cells):
        (owner,) = [leases[number] for leases in claimed if leases[number]]
        assert read(tmp_path / "cells" / name, 1) == owner.lease


def test_a_heartbeat_is_written_when_it_is_time_and_renews_the_lease(cell, clock, owned):
    for time, counter, expires in ((9, 0, 30), (10, 1, 40), (15, 1, 40), (21, 2, 51)):
        clock.time = time
        owned.keep()
        assert (read(cell, 1).counter, owned.expires) == (counter, expires)


def test_an_owner_that_sees_a_newer_generation_has_lost_the_cell(cell, clock, owned):
    assert claim(cell, 2, LEASE, clock, INTERVALS)
    owned.keep()
    clock.time = 10
    with pytest.raises(LeaseLost, match="a: generation 2 has another owner"):
        owned.keep()


def test_heartbeats_that_cannot_be_written_are_tried_again_until_the_lease_expires(
    cell, clock, owned, monkeypatch, caplog
):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(shared_directory, "replace", fail)
        for clock.time in (10, 11, 12.5):
            owned.keep()
        assert caplog.text.count("no heartbeat for a: [Errno 28] No space") == 2
        assert owned.expires == 30
    clock.time = 29
    owned.keep()
    assert owned.expires == 59
    clock.time = 59
    with pytest.raises(LeaseExpired, match=r"no heartbeat got through for 30 s"):
        owned.keep()


def test_a_heartbeat_that_gets_through_too_late_does_not_count(cell, clock, owned, monkeypatch):
    write = shared_directory.replace

    def write_slowly(*arguments):
        clock.time = 31
        write(*arguments)

    monkeypatch.setattr(shared_directory, "replace", write_slowly)
    clock.time = 10
    with pytest.raises(LeaseExpired):
        owned.keep()
    assert owned.expires == 30


@pytest.mark.parametrize("offset", [0.0, -7200.0, 1e6])
def test_a_lease_is_stale_after_45_seconds_of_the_watchers_clock(cell, clock, owned, offset):
    """The watcher's clock is hours apart from that of the owner."""
    watcher_clock = Clock(offset)
    watcher = queue(cell, watcher_clock)
    assert watcher.claim_next() is None
    watcher_clock.time += 44
    assert watcher.claim_next() is None
    clock.time = 10
    owned.keep()
    for _ in range(2):
        watcher_clock.time += 44
        assert watcher.claim_next() is None
        clock.time += 10
        owned.keep()
    watcher_clock.time += 44
    assert watcher.claim_next() is None
    watcher_clock.time += 45
    assert watcher.claim_next().generation == 2


def test_a_watcher_that_was_suspended_while_it_read_counts_from_the_end_of_that(
    cell, clock, owned, monkeypatch
):
    watcher_clock = Clock()
    watcher = queue(cell, watcher_clock)
    read_text = shared_directory.read

    def read_slowly(path):
        text = read_text(path)
        watcher_clock.time += 100
        return text

    with monkeypatch.context() as slow:
        slow.setattr(shared_directory, "read", read_slowly)
        assert watcher.claim_next() is None  # since 100 s
        watcher_clock.time += 44
        assert watcher.claim_next() is None  # until 144 s, though it is 244 s when that is known
    assert watcher.claim_next().generation == 2


@pytest.mark.parametrize("state", ["interrupted", "failed"])
def test_a_released_cell_is_claimed_at_once(cell, clock, owned, state):
    owned.release(state, "reason")
    assert read(cell, 1) == replace(LEASE, state=state, reason="reason")
    assert queue(cell, clock).claim_next().generation == 2


@pytest.mark.parametrize("text", ["", '{"owner": "x', "null"])
def test_a_damaged_lease_becomes_stale(cell, clock, text):
    lease_path(cell, 1).write_text(text, encoding="utf-8")
    watcher = queue(cell, clock)
    assert watcher.claim_next() is None
    clock.time = 45
    assert watcher.claim_next().generation == 2


def test_a_worker_that_dies_while_it_writes_a_lease_leaves_the_old_one(cell, clock, owned):
    (cell / ".lease-000001.json.0123.unfinished").write_text('{"own', encoding="utf-8")
    (cell / ".lease-000002.json.4567.unfinished").write_text("", encoding="utf-8")
    watcher = queue(cell, clock)
    assert watcher.claim_next() is None and read(cell, 1) == LEASE
    clock.time = 45
    assert watcher.claim_next().generation == 2


def test_a_cell_that_got_a_result_before_it_was_claimed_is_given_back(cell, clock, monkeypatch):
    (cell / "result.json").touch()
    names = shared_directory.names
    answers = [[]]  # as of before
    monkeypatch.setattr(
        shared_directory, "names", lambda path: answers.pop() if answers else names(path)
    )
    worker = queue(cell, clock)
    assert worker.claim_next() is None and worker.is_empty
    assert read(cell, 1).state == "settled" and not (cell / "failure.json").exists()


def test_a_lease_that_was_never_released_counts_unless_its_owner_was_asked_to_stop(cell, clock):
    watcher = queue(cell, clock, max_attempts=2)
    for generation, asked in ((1, False), (2, True), (3, False)):
        owned = watcher.claim_next()
        assert owned.generation == generation
        if asked:
            owned.mark_stopping()
            owned.heartbeat()
        watcher.claim_next()
        clock.time += 45
    assert watcher.claim_next() is None and watcher.is_empty
    attempts = json.loads((cell / "failure.json").read_text(encoding="utf-8"))["attempts"]
    assert [attempt["generation"] for attempt in attempts] == [1, 3]
    assert all("gave no sign of life" in attempt["reason"] for attempt in attempts)


def test_intervals_that_would_let_two_workers_train_a_cell_are_refused():
    for values in ({"expiry": 45}, {"heartbeat": 30}, {"stale": 30}):
        with pytest.raises(ConfigError, match="expected heartbeat < expiry < stale"):
            Intervals(**values)
