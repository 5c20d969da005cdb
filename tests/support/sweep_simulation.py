"""A simulated sweep: real workers, on simulated machines, clocks, files and training.

Each worker runs in a thread, but only one thread runs at a time, from one interaction with the
world to the next: a file operation, a look at the clock, or a wait. Which one, and how much time
passes, is the caller's choice.
"""

import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from lclm_jax.sweeps.workers import shared_directory
from lclm_jax.sweeps.workers.intervals import Intervals
from lclm_jax.sweeps.workers.layout import RESULT
from lclm_jax.sweeps.workers.worker import Worker

DIRECTORY = Path("/sweep")
STEPS_AFTER_FREEZE = 12  # of a worker, before its child notices that its time is over


class Killed(BaseException):
    """The end of a simulated machine."""


@dataclass
class Machine:
    """A simulated machine, and the request to stop of its worker."""

    world: "World"
    offset: float  # of its clock, in seconds
    received: bool = False  # a request to stop
    suspended: bool = False  # its worker
    frozen: bool = False  # its child, too
    suspend_before: str | None = None  # an interaction, such as "create"
    ended: bool = False
    killed: bool = False
    error: Exception | None = None
    awake: Callable[[], bool] = lambda: True
    late_steps: int = 0
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def clock(self) -> float:
        self.interact("clock")
        return self.world.now + self.offset

    def interact(self, name: str):
        """Let others run, until it is this machine's turn again, which is then to do `name`."""
        if name == self.suspend_before:
            self.suspended, self.suspend_before = True, None
        self.world.turn_over.release()
        self.turn.acquire()
        if self.killed:
            raise Killed

    def wait(self, seconds: float, condition: Callable[[], bool]):
        end = self.world.now + seconds
        self.awake = lambda: self.world.now >= end or condition()
        self.interact("wait")
        self.awake = lambda: True

    def pause(self, seconds: float):
        self.wait(seconds, lambda: self.received)

    def resume(self):
        if self.suspended and self.frozen:
            self.late_steps = STEPS_AFTER_FREEZE
        self.suspended = self.frozen = False
        self.suspend_before = None

    def run(self, worker: Worker):
        self.turn.acquire()
        try:
            worker.run(self)  # type: ignore[arg-type]
        except Killed:
            pass
        except Exception as error:  # noqa: BLE001 the test raises it in its own thread
            self.error = error
        self.ended = True
        self.world.turn_over.release()


class SimulatedChild:
    """A process that trains a cell, with the methods of `Child`."""

    def __init__(self, machine: Machine, cell: str, log: Path, expires: float, clock: Any):
        machine.interact("start")
        self.machine = machine
        self.world = machine.world
        self.cell = cell
        self.outcome, seconds = self.world.training(cell)
        self.end_time = self.world.now + seconds
        self.expires = expires - machine.offset
        self.ended = self.expires <= self.world.now
        if not self.ended:
            self.world.start(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    @property
    def trains(self) -> bool:
        frozen = self.machine.suspended and self.machine.frozen
        return not self.ended and not frozen and self.world.now < self.expires

    def renew(self, expires: float):
        self.expires = expires - self.machine.offset
        self.world.check_alone(self)

    def wait(self, seconds: float) -> bool:
        self.machine.wait(seconds, lambda: self.ended)
        return self.ended

    def terminate(self):
        self.end_time, self.outcome = min(self.end_time, self.world.now + 1), "stopped"

    def kill(self):
        self.ended = True

    was_interrupted = False

    def describe_end(self) -> str:
        return self.outcome


class World:
    """Simulated files, time and training; `training(cell)` is an outcome and its seconds."""

    def __init__(self, training: Callable[[str], tuple[str, float]], intervals: Intervals):
        self.training = training
        self.intervals = intervals
        self.now = 0.0
        self.files: dict[Path, str] = {}
        self.machines: list[Machine] = []
        self.children: list[SimulatedChild] = []
        self.disk_is_full = False
        self.errors: list[str] = []
        self.turn_over = threading.Semaphore(0)
        self.threads: list[threading.Thread] = []
        self.current: Machine | None = None

    def add_machine(self, cells: list[str], max_attempts: int, offset: float):
        machine = Machine(self, offset)
        worker = Worker(
            DIRECTORY,
            cells,
            lambda cell: cell,  # type: ignore[arg-type]
            max_attempts=max_attempts,
            intervals=self.intervals,
            clock=machine.clock,
            start_child=lambda *arguments: SimulatedChild(machine, *arguments),  # type: ignore
        )
        self.machines.append(machine)
        self.threads.append(threading.Thread(target=machine.run, args=(worker,), daemon=True))
        self.threads[-1].start()

    # --- What the caller chooses ---

    def step(self, machine: Machine) -> bool:
        """Run a machine until it interacts with the world. Returns False where it cannot run."""
        can_run = machine.killed or (not machine.suspended and machine.awake())
        if machine.ended or not can_run:
            return False
        self.current = machine
        machine.turn.release()
        self.turn_over.acquire()
        self.current = None
        machine.late_steps = max(0, machine.late_steps - 1)
        self._end_children()
        return True

    def advance(self, seconds: float):
        self.now += seconds
        for child in self.children:
            if child.machine.suspended and child.machine.frozen:
                child.end_time += seconds
        self._end_children()

    def run_fairly(self, seconds: float):
        """Let every machine run as far as it can before time goes on, as on a quiet day."""
        end = self.now + seconds
        while self.now < end:
            while sum(self.step(machine) for machine in self.machines):
                pass
            self.advance(0.5)

    def kill(self, machine: Machine):
        """End a machine, and with it the child of its worker."""
        for child in self.children:
            if child.machine is machine:
                child.ended = True
        machine.killed = True
        while self.step(machine):
            pass

    # --- Training ---

    def start(self, child: SimulatedChild):
        self.children.append(child)
        self.check_alone(child)

    def check_alone(self, child: SimulatedChild):
        training = [other for other in self.children if other.cell == child.cell and other.trains]
        if len(training) > 1:
            self.errors.append(f"{child.cell} is trained twice at {self.now}")

    def _end_children(self):
        """End the children whose training or time is over."""
        for child in self.children:
            if child.end_time <= min(self.now, child.expires) and not child.ended:
                child.ended = True
                if child.outcome == "finished":
                    self._write_result(child)
            is_late = child.machine.late_steps or child.machine.frozen
            if child.expires <= self.now and not is_late:
                child.ended = True
        self.children = [child for child in self.children if not child.ended]

    def _write_result(self, child: SimulatedChild):
        result = DIRECTORY / "cells" / child.cell / RESULT
        if result in self.files:
            self.errors.append(f"{child.cell} has two results")
        self.files[result] = "{}"

    # --- Operations of `shared_directory`, each of which a machine may be suspended before ---

    def _interact(self, name: str):
        if self.current:
            self.current.interact(name)

    def _write(self, name: str):
        self._interact(name)
        if self.disk_is_full:
            raise OSError(errno.ENOSPC, "No space left on device")

    def create(self, path: Path, text: str) -> bool:
        self._write("create")
        if path in self.files:
            return False
        self.files[path] = text
        return True

    def replace(self, path: Path, text: str):
        self._write("replace")
        self.files[path] = text

    def read(self, path: Path) -> str | None:
        self._interact("read")
        return self.files.get(path)

    def names(self, path: Path) -> list[str]:
        self._interact("names")
        return sorted(file.name for file in self.files if file.parent == path)


@contextmanager
def simulated(world: World) -> Iterator[World]:
    """Replace the shared directory by a simulated one, and end all machines after the block."""
    operations = {name: getattr(world, name) for name in ("create", "replace", "read", "names")}
    with mock.patch.dict(vars(shared_directory), operations, make=lambda path: None):
        try:
            yield world
        finally:
            for machine in world.machines:
                world.kill(machine)
            for thread in world.threads:
                thread.join()
