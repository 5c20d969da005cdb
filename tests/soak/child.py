"""A child process of a soak as its parent sees it: its output, its end and its files."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lclm_jax.checkpoint.steps import saved_steps
from lclm_jax.config import Config
from lclm_jax.config.values import to_dict
from lclm_jax.errors import UserError
from lclm_jax.files.checksums import CHECKSUMS
from lclm_jax.files.run_layout import EVENTS, LOG, STEPS
from tests.soak.faults import Order
from tests.support.paths import ROOT

POLL_SECONDS = 0.003
HANG_SECONDS = 120.0  # a child that has not reached its fault by then hangs
Line = dict[str, Any]


class OutOfTimeError(UserError):
    """The soak took longer than it may."""


class HungError(UserError):
    """A child that neither reached its fault nor ended."""


@dataclass(frozen=True)
class Session:
    """The checkpoint a child started from, and the journals it wrote."""

    newest: int | None  # the finished checkpoint it found
    events: list[Line]
    log: list[Line]


class Child:
    """A process that trains a config; it may not run beyond `deadline` (of time.monotonic)."""

    def __init__(self, config: Config, order: Order, notes: Path, deadline: float):
        self.config, self.directory, self.deadline = config, Path(config.run.directory), deadline
        self.start_time = time.time()
        self.newest = next(iter(saved_steps(self.directory / STEPS)), None)
        self._offsets = {name: _size(self.directory / name) for name in (EVENTS, LOG)}
        notes.mkdir(parents=True, exist_ok=True)
        (notes / "config.json").write_text(json.dumps(to_dict(config)), encoding="utf-8")
        (notes / "order.json").write_text(json.dumps(to_dict(order)), encoding="utf-8")
        self.output_file = notes / "stderr.txt"
        command = [
            sys.executable,
            "-m",
            "tests.soak.faults",
            str(notes / "config.json"),
            str(notes / "order.json"),
        ]
        environment = _environment(notes.parent.parent / "programs")
        with self.output_file.open("wb") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=output
            )

    def lines(self, name: str) -> list[Line]:
        """Return the lines that this child has written to a journal, without an unfinished one."""
        file = self.directory / name
        if not file.exists():
            return []
        with file.open("rb") as text:
            text.seek(self._offsets[name])
            whole = text.read().rpartition(b"\n")[0].splitlines()
        return [json.loads(line) for line in whole if line]

    @property
    def step(self) -> int:
        """The last step of the run in its log, counted over all stages."""
        lines = self.lines(LOG)
        return self.config.run_step(lines[-1]["stage"], lines[-1]["step"]) if lines else 0

    @property
    def session(self) -> Session:
        return Session(self.newest, self.lines(EVENTS), self.lines(LOG))

    @property
    def message(self) -> str:
        """The line of the error it ended with, or else its last line."""
        lines = self.output_file.read_text(errors="replace", encoding="utf-8").strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or lines or [""])[-1].strip()

    def saving(self, least: int) -> bool:
        """Tell whether a checkpoint of at least this step is being written.

        Such a checkpoint is unfinished or has no checksums yet.
        """
        if self.step < least or not (self.directory / STEPS).is_dir():
            return False
        # Leftovers of an earlier save are of no later step than this child has reached.
        first = self.newest or 0
        names = [
            path for path in (self.directory / STEPS).iterdir() if not (path / CHECKSUMS).exists()
        ]
        numbers = [
            int(number) for path in names if (number := path.name.partition(".")[0]).isdigit()
        ]
        return any(max(first + 1, least) <= number <= self.step for number in numbers)

    def wait_until(self, true: Callable[[], bool]) -> bool:
        """Wait until `true()` holds; return False if the child ends before.

        Raises HungError, OutOfTimeError.
        """
        hangs_at = time.monotonic() + HANG_SECONDS
        while not true():
            if self.process.poll() is not None:
                return true()
            if time.monotonic() > self.deadline:
                raise OutOfTimeError("out of time")
            if time.monotonic() > hangs_at:
                raise HungError(
                    f"nothing happened for {HANG_SECONDS:.0f} s; its last words: "
                    f"{self.message[:200]}"
                )
            time.sleep(POLL_SECONDS)
        return True

    def ended(self) -> int:
        """Wait until it ends by itself, and return its exit status."""
        self.wait_until(lambda: self.process.poll() is not None)
        return self.process.wait()

    def kill(self) -> int:
        self.process.kill()
        return self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.ended()


@contextmanager
def child(config: Config, order: Order, notes: Path, deadline: float) -> Iterator[Child]:
    """Start a child that does not outlive the block."""
    started = Child(config, order, notes, deadline)
    try:
        yield started
    finally:
        started.kill()


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _environment(programs: Path) -> dict[str, str]:
    """Return an environment with one device and a cache of programs for all children."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith("LCLM_JAX_")
    }
    return inherited | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(programs),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
