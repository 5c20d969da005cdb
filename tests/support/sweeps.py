"""Sweeps of counting children, with workers in this process or in others."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lclm_jax.sweeps.workers import CellState, Intervals, StopSignal, Worker, read_states
from tests.support.paths import ROOT
from tests.support.sweep_worker import child_command

PATIENCE_SECONDS = 120  # for what takes two on a quiet machine
# So long that no lease becomes stale by chance, and so short that a test need not wait.
SOON = {"heartbeat": 0.1, "expiry": 2, "stale": 3, "poll": 0.1, "retry": 0.1}


class Sweep:
    """A sweep in a directory; `cells` has the behaviour of the child in each cell."""

    def __init__(self, directory: Path, cells: dict[str, str]):
        self.directory = directory
        self.cells = cells
        self.processes: list[subprocess.Popen] = []

    def run(
        self, stop: StopSignal | None = None, grace: float = 60, retry: float = 0.1, **options
    ) -> bool:
        """Run a worker in this process."""
        return Worker(
            self.directory,
            list(self.cells),
            lambda cell: child_command(self.directory, self.cells, cell),
            intervals=Intervals(**SOON | {"grace": grace, "retry": retry}),
            **options,
        ).run(stop or StopSignal())

    def start(self, offset: float = 0, **options) -> subprocess.Popen:
        """Start a worker or follower as a process; `offset` is that of its clock."""
        values = {
            "directory": str(self.directory),
            "cells": self.cells,
            "intervals": SOON,
            "offset": offset,
            "options": options,
        }
        command = [sys.executable, "-m", "tests.support.sweep_worker", json.dumps(values)]
        with (self.directory / f"worker-{len(self.processes)}.txt").open("wb") as log:
            self.processes.append(subprocess.Popen(command, cwd=ROOT, stderr=log))
        return self.processes[-1]

    def file(self, cell: str, name: str) -> Path:
        return self.directory / "cells" / cell / name

    def children(self, cell: str) -> list[int]:
        """Return the process ids of the children that a cell has had."""
        file = self.file(cell, "children")
        return [int(line) for line in file.read_text("utf-8").split()] if file.exists() else []

    def states(self) -> list[CellState]:
        return read_states(self.directory, list(self.cells))

    def check_finished(self):
        """Every cell has one result, and was never trained twice at a time."""
        assert [state.status for state in self.states()] == ["finished"] * len(self.cells)
        assert not list(self.directory.rglob("overlap"))


def wait_for(condition: Callable[[], object]):
    """Wait until a condition is true."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Return True for a process that runs; one that has ended may be unknown or a zombie."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
