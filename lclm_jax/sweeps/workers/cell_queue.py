"""The cells of a sweep in the order in which a worker takes them."""

import math
import os
import socket
import uuid
from collections.abc import Sequence
from pathlib import Path

from lclm_jax.sweeps.workers import shared_directory
from lclm_jax.sweeps.workers.failures import give_up, read_failures
from lclm_jax.sweeps.workers.intervals import Intervals
from lclm_jax.sweeps.workers.layout import FAILURE, RESULT, cell_directory
from lclm_jax.sweeps.workers.leases import (
    Clock,
    Lease,
    LeaseWatch,
    OwnedLease,
    claim,
    lease_path,
    newest_generation,
    parse_lease,
)


class CellQueue:
    """The cells of a sweep as a worker sees them; one with a result or a failure is settled."""

    def __init__(
        self,
        directory: Path,
        cells: Sequence[str],
        max_attempts: int,
        clock: Clock,
        intervals: Intervals,
    ):
        self._unsettled = [cell_directory(directory, cell) for cell in cells]
        self._max_attempts = max_attempts
        self._clock = clock
        self._intervals = intervals
        self._postponed: dict[Path, float] = {}  # times from which cells may be tried again
        self._watch = LeaseWatch(clock)
        host, pid = socket.gethostname(), os.getpid()
        self._lease = Lease(f"{host}-{pid}-{uuid.uuid4().hex[:8]}", host, pid)

    def claim_next(self) -> OwnedLease | None:
        """Return a lease of the first cell that can be claimed, or None where there is none now."""
        for cell in list(self._unsettled):
            names = shared_directory.names(cell)
            if is_settled(names):
                self._unsettled.remove(cell)
                continue
            if self._is_postponed(cell, names):
                continue
            lease = self._claim(cell, newest_generation(names))
            if lease is None:
                continue
            if not self._settle(lease):
                return lease
            self._unsettled.remove(cell)
        return None

    def postpone(self, cell: Path):
        """Leave a cell to other workers for a while, since this one's machine may be at fault."""
        self._postponed[cell] = self._clock() + self._intervals.retry

    def _is_postponed(self, cell: Path, names: Sequence[str]) -> bool:
        """Return True for a cell that is to be tried again, but not yet."""
        if self._clock() >= self._postponed.get(cell, -math.inf):
            return False
        return len(read_failures(cell, names)) < self._max_attempts

    @property
    def is_empty(self) -> bool:
        """Return True where `claim_next` last found every cell settled."""
        return not self._unsettled

    def _claim(self, cell: Path, newest: int) -> OwnedLease | None:
        """Claim a cell if it is free, released, or its lease is stale."""
        if newest:
            text, unchanged_seconds = self._watch.read(lease_path(cell, newest))
            lease = parse_lease(text)
            is_released = lease is not None and lease.is_released
            if not is_released and unchanged_seconds < self._intervals.stale:
                return None
        shared_directory.make(cell)
        return claim(cell, newest + 1, self._lease, self._clock, self._intervals)

    def _settle(self, lease: OwnedLease) -> bool:
        """Return True, and give the cell back, where there is nothing to train.

        Only the owner knows: what others have read may be out of date.
        """
        names = shared_directory.names(lease.cell)
        failures = read_failures(lease.cell, names)
        if not is_settled(names):
            if len(failures) < self._max_attempts:
                return False
            give_up(lease.cell, failures)
        lease.release("settled")
        return True


def is_settled(names: Sequence[str]) -> bool:
    """Return True where the names in a cell's directory have a result or a failure."""
    return RESULT in names or FAILURE in names


def all_settled(directory: Path, cells: Sequence[str]) -> bool:
    """Return True where every cell of a sweep has a result or a failure."""
    return all(
        is_settled(shared_directory.names(cell_directory(directory, cell))) for cell in cells
    )
