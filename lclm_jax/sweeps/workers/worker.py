"""A worker of a sweep: claims cells one after the other and trains each in a child process.

Any number of workers share the cells of a directory, and need to know nothing of each other. Start
one on each slice; where a slice has several hosts, on its host 0, and a follower on the others.
"""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lclm_jax.config.settings import FileName, Size, parse
from lclm_jax.sweeps.workers import shared_directory
from lclm_jax.sweeps.workers.cell_queue import CellQueue
from lclm_jax.sweeps.workers.child import Child
from lclm_jax.sweeps.workers.intervals import Intervals
from lclm_jax.sweeps.workers.layout import RESULT, cells_directory, log_name
from lclm_jax.sweeps.workers.leases import Clock, LeaseExpired, LeaseLost, OwnedLease, State
from lclm_jax.sweeps.workers.slices import Assignment, publish
from lclm_jax.sweeps.workers.stop_signal import StopSignal
from lclm_jax.sweeps.workers.supervision import supervise

log = logging.getLogger(__name__)
Command = Callable[[str], list[str]]  # cell -> arguments of the process that trains it
MAX_ATTEMPTS = 3


class Worker:
    """A worker of the sweep in `directory`, which exists and which all workers see.

    `command(cell)` trains a cell: it writes the cell's result.json, and continues from where an
    earlier process stopped. `slice_name` is given where the slice has other hosts. `clock` and
    `start_child` are for simulations.
    """

    def __init__(
        self,
        directory: Path,
        cells: Sequence[str],
        command: Command,
        slice_name: str | None = None,
        max_attempts: int = MAX_ATTEMPTS,
        intervals: Intervals = Intervals(),
        clock: Clock = time.monotonic,
        start_child: Callable[..., Child] = Child,
    ):
        self._directory = directory
        self._command = command
        self._slice_name = parse(FileName | None, slice_name, "slice_name")
        self._intervals = intervals
        self._clock = clock
        self._start_child = start_child
        self._queue = CellQueue(
            directory,
            parse(tuple[FileName, ...], cells, "cells"),
            parse(Size, max_attempts, "max_attempts"),
            clock,
            intervals,
        )

    def run(self, stop: StopSignal) -> bool:
        """Train cells until each has a result or a failure. Returns False where stopped before.

        A child that is interrupted, as where its machine is about to go, stops the worker, too.

        Waits for cells that other workers train, and takes over those that they lose. Raises
        DirectoryError without the sweep's directory.
        """
        shared_directory.make(cells_directory(self._directory))
        while not stop.received:
            try:
                lease = self._queue.claim_next()
                if lease is not None:
                    if self._train(lease, stop) == "interrupted":
                        return False
                    continue
                if self._queue.is_empty:
                    return True
            except LeaseLost as loss:
                log.warning("%s; leaving the cell to it", loss)
                continue
            except OSError as error:  # a full disk, or a file server that is away
                log.warning("%s; trying again in %s s", error, self._intervals.poll)
            stop.pause(self._intervals.poll)
        return False

    def _train(self, lease: OwnedLease, stop: StopSignal) -> State:
        """Train the cell of a lease once, release it, and return how that ended.

        Raises LeaseLost where another worker has the cell.
        """
        cell = lease.cell.name
        log.info("%s: training, generation %s", cell, lease.generation)
        try:
            state, reason = self._attempt(lease, stop)
        except LeaseExpired as expiry:
            state, reason = "failed", str(expiry)
        if state == "failed":
            self._queue.postpone(lease.cell)
        lease.release(state, reason)
        log.info("%s", ": ".join([cell, state, *reason.splitlines()[:1]]))
        return state

    def _attempt(self, lease: OwnedLease, stop: StopSignal) -> tuple[State, str]:
        """Train a cell until it ends or this worker must stop. Returns the outcome and a reason."""

        def keep() -> float:
            if stop.received:
                lease.mark_stopping()
            lease.keep()
            return lease.expires

        cell = lease.cell.name
        if self._slice_name is not None:
            publish(self._directory, self._slice_name, Assignment(cell, lease.generation))
        try:
            child = self._start_child(
                self._command(cell), lease.cell / log_name(host=0), lease.expires, self._clock
            )
        except OSError as error:
            return "failed", f"could not be started: {error}"
        with child:
            supervise(child, keep, stop, self._intervals, self._clock)
            reason, was_interrupted = child.describe_end(), child.was_interrupted
        if RESULT in shared_directory.names(lease.cell):
            return "settled", ""
        if stop.received or was_interrupted:
            return "interrupted", ""
        lease.check()  # or the child ended because of that
        return "failed", reason
