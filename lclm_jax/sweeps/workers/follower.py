"""A follower: trains, on another host of a slice, the cell that the worker on host 0 claimed."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lclm_jax.config.settings import FileName, Size, parse
from lclm_jax.sweeps.workers import shared_directory
from lclm_jax.sweeps.workers.cell_queue import all_settled
from lclm_jax.sweeps.workers.child import Child
from lclm_jax.sweeps.workers.intervals import Intervals
from lclm_jax.sweeps.workers.layout import cell_directory, cells_directory, log_name
from lclm_jax.sweeps.workers.leases import (
    Clock,
    LeaseExpired,
    LeaseLost,
    LeaseWatch,
    lease_path,
    newest_generation,
    parse_lease,
)
from lclm_jax.sweeps.workers.slices import Assignment, read_assignment
from lclm_jax.sweeps.workers.stop_signal import StopSignal
from lclm_jax.sweeps.workers.supervision import supervise
from lclm_jax.sweeps.workers.worker import Command

log = logging.getLogger(__name__)


class Follower:
    """A follower on host `host`, from 1 on, of a slice; otherwise as `Worker`.

    Its child is one process of a training that all hosts of the slice share, and trains nothing
    without that of host 0. So it may end a little later than the lease.
    """

    def __init__(
        self,
        directory: Path,
        cells: Sequence[str],
        command: Command,
        slice_name: str,
        host: int,
        intervals: Intervals = Intervals(),
        clock: Clock = time.monotonic,
        start_child: Callable[..., Child] = Child,
    ):
        self._directory = directory
        self._cells = parse(tuple[FileName, ...], cells, "cells")
        self._command = command
        self._slice_name = parse(FileName, slice_name, "slice_name")
        self._host = parse(Size, host, "host")
        self._intervals = intervals
        self._clock = clock
        self._start_child = start_child
        self._watch = LeaseWatch(clock)

    def run(self, stop: StopSignal) -> bool:
        """Train what host 0 trains until every cell is settled. Returns False where stopped before.

        The child process is killed when host 0 trains another cell, or none, or gives no sign of
        life. Raises DirectoryError without the sweep's directory.
        """
        shared_directory.make(cells_directory(self._directory))
        trained = None
        while not stop.received:
            try:
                assignment = read_assignment(self._directory, self._slice_name)
                if assignment is not None and assignment != trained:
                    trained = assignment
                    self._train(assignment, stop)
                elif all_settled(self._directory, self._cells):
                    return True
            except (LeaseExpired, LeaseLost) as end:
                log.warning("%s", end)
            except OSError as error:
                log.warning("%s; trying again in %s s", error, self._intervals.poll)
            stop.pause(self._intervals.poll)
        return False

    def _train(self, assignment: Assignment, stop: StopSignal):
        """Train an assigned cell once. Raises LeaseLost or LeaseExpired where that is cut short."""
        expires = self._look(assignment)
        next_look = self._clock() + self._intervals.poll

        def keep() -> float:
            nonlocal expires, next_look
            if self._clock() >= next_look:
                next_look = self._clock() + self._intervals.poll
                try:
                    expires = self._look(assignment)
                except OSError as error:
                    log.warning("%s: %s", assignment.cell, error)
            return expires

        log_path = cell_directory(self._directory, assignment.cell) / log_name(self._host)
        with self._start_child(
            self._command(assignment.cell), log_path, expires, self._clock
        ) as child:
            supervise(child, keep, stop, self._intervals, self._clock)

    def _look(self, assignment: Assignment) -> float:
        """Return until when an assigned cell may be trained.

        Raises LeaseLost where host 0 has ended its training, and LeaseExpired where that gives no
        sign of life.
        """
        now = self._clock()
        cell = cell_directory(self._directory, assignment.cell)
        text, unchanged_seconds = self._watch.read(lease_path(cell, assignment.generation))
        lease = parse_lease(text)
        if (
            lease is None
            or lease.is_released
            or newest_generation(shared_directory.names(cell)) > assignment.generation
            or read_assignment(self._directory, self._slice_name) != assignment
        ):
            raise LeaseLost(f"{assignment.cell}: host 0 trains it no more")
        if unchanged_seconds >= self._intervals.expiry:
            raise LeaseExpired(f"{assignment.cell}: no sign of life of host 0")
        return now + self._intervals.expiry - unchanged_seconds
