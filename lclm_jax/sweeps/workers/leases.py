"""Leases of cells: which worker trains a cell, agreed on without a coordinator.

The leases of a cell are files, lease-000001.json, lease-000002.json and so on, one for each
generation. A worker claims the cell by creating the file of the next generation, which succeeds
for one worker only. Its owner replaces the file at every heartbeat, with a higher counter. The
others claim the next generation where the newest one is released, or where its file stays the same
for `stale` seconds of their own clocks; clocks of two machines are never compared.

No two workers train a cell at the same time, however long any of them is suspended. A lease
expires `expiry` seconds after the start of its last heartbeat, and training ends by then, by itself
if need be. A heartbeat that gets through later does not count. Others call the lease stale only
after that, so its owner cannot get back to work, whenever they claim the cell. Should the clock of
a suspended machine stand still, its worker sees the newer generation at its next heartbeat.
"""

import json
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lclm_jax.sweeps.workers import shared_directory
from lclm_jax.sweeps.workers.intervals import Intervals

log = logging.getLogger(__name__)
TRIES_PER_HEARTBEAT = 4  # after one that could not be written
FILE = re.compile(r"lease-(\d{6,})\.json")
# An owner at work, one that was asked to stop, and three ends: it was stopped, the attempt failed,
# or nothing is left to do because the cell has a result or failed too often.
State = Literal["running", "stopping", "interrupted", "failed", "settled"]
Clock = Callable[[], float]  # seconds from any origin, never backwards


class LeaseLost(Exception):
    """The end of an ownership: another worker has claimed the cell."""


class LeaseExpired(Exception):
    """The end of an ownership for want of heartbeats; another worker may claim the cell."""


@dataclass(frozen=True)
class Lease:
    """The content of a lease's file."""

    owner: str  # differs between any two workers
    host: str
    pid: int
    counter: int = 0  # of heartbeats
    state: State = "running"
    reason: str = ""  # of a failed attempt

    @property
    def is_released(self) -> bool:
        """Return True where the owner has given the cell back."""
        return self.state not in ("running", "stopping")

    def to_dict(self) -> dict[str, Any]:
        """Return the values of the lease's JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Lease":
        """Return the lease of `to_dict`. Raises TypeError for other keys."""
        return cls(**values)


def parse_lease(text: str | None) -> Lease | None:
    """Return the lease in a file's text, or None for a damaged or missing file."""
    try:
        return Lease.from_dict(json.loads(text or ""))
    except (ValueError, TypeError):
        return None


def lease_path(cell: Path, generation: int) -> Path:
    """Return the path of a lease in the directory of its cell."""
    return cell / f"lease-{generation:06d}.json"


def newest_generation(names: Iterable[str]) -> int:
    """Return the highest generation among the names in a cell's directory, 0 where none is."""
    matches = (FILE.fullmatch(name) for name in names)
    return max((int(match[1]) for match in matches if match), default=0)


class OwnedLease:
    """A lease that this worker holds; its times are those of this worker's clock."""

    def __init__(
        self, cell: Path, generation: int, lease: Lease, clock: Clock, intervals: Intervals
    ):
        self.cell = cell
        self.generation = generation
        self.lease = lease
        self.expires = clock() + intervals.expiry  # when training must have ended
        self._clock = clock
        self._intervals = intervals
        self._next_heartbeat = clock() + intervals.heartbeat

    def check(self):
        """Raise LeaseExpired where no heartbeat got through in time."""
        if self._clock() >= self.expires:
            raise LeaseExpired(f"no heartbeat got through for {self._intervals.expiry:g} s")

    def keep(self):
        """Write a heartbeat if it is time for one. A failure is logged, and soon tried again.

        Raises LeaseLost where another worker owns the cell, and LeaseExpired where one may.
        """
        self.check()
        if self._clock() < self._next_heartbeat:
            return
        seconds = self._intervals.heartbeat
        try:
            self.heartbeat()
        except OSError as error:
            log.warning("no heartbeat for %s: %s", self.cell.name, error)
            seconds /= TRIES_PER_HEARTBEAT
        self._next_heartbeat = self._clock() + seconds

    def heartbeat(self):
        """Write the lease with a higher counter.

        Raises LeaseLost where another worker owns the cell, LeaseExpired where one may by the time
        the lease is written, and OSError where it cannot be written.
        """
        start = self._clock()
        self._write(replace(self.lease, counter=self.lease.counter + 1))
        newest = newest_generation(shared_directory.names(self.cell))
        if newest > self.generation:
            raise LeaseLost(f"{self.cell.name}: generation {newest} has another owner")
        self.check()
        self.expires = start + self._intervals.expiry

    def mark_stopping(self):
        """Let the next heartbeats say that this worker was asked to stop.

        Should it be killed before it has released the lease, the attempt does not count.
        """
        self.lease = replace(self.lease, state="stopping")

    def release(self, state: State, reason: str = ""):
        """Give the cell back, once nothing here trains it any more.

        Raises OSError where the lease cannot be written; it then becomes stale.
        """
        self._write(replace(self.lease, state=state, reason=reason))

    def _write(self, lease: Lease):
        shared_directory.replace(lease_path(self.cell, self.generation), to_text(lease))
        self.lease = lease


def to_text(lease: Lease) -> str:
    """Return the text of a lease's file."""
    return json.dumps(lease.to_dict(), indent=1)


def claim(
    cell: Path, generation: int, lease: Lease, clock: Clock, intervals: Intervals
) -> OwnedLease | None:
    """Claim a generation of a cell, where the one before is released or stale.

    Returns None where another worker was first. Raises OSError where the lease cannot be written.
    """
    owned = OwnedLease(cell, generation, lease, clock, intervals)  # its time starts before the file
    created = shared_directory.create(lease_path(cell, generation), to_text(lease))
    return owned if created else None


class LeaseWatch:
    """The leases of other workers, and since when each is as it is."""

    def __init__(self, clock: Clock):
        self._clock = clock
        self._last: dict[Path, tuple[str | None, float]] = {}

    def read(self, path: Path) -> tuple[str | None, float]:
        """Return the text of a lease, and for how many seconds it has been the same.

        Only the time between two reads counts: this process may be suspended around each.
        """
        before = self._clock()
        text = shared_directory.read(path)
        if path in self._last and text == self._last[path][0]:
            return text, before - self._last[path][1]
        self._last[path] = (text, self._clock())
        return text, 0.0
