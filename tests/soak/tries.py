"""The disturbance of a child for each kind of fault, and the expected behaviour."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from lclm_jax.checkpoint.steps import saved_steps
from lclm_jax.config import Config
from lclm_jax.data.shards import index_path
from lclm_jax.files.checksums import CHECKSUMS, find_damage
from lclm_jax.files.run_layout import EVENTS, LOG, STEPS
from lclm_jax.training.watchdog import EXIT_STATUS
from tests.soak.child import Child, Session, child
from tests.soak.faults import DAY, DIED, Order
from tests.soak.plan import Fault, Kind
from tests.support.shards import find_shards

# Exit statuses: after the message of an error, after a request to stop, by SIGKILL.
MESSAGE, INTERRUPTED, KILLED = 2, 130, -9
MAX_STEPS_AFTER_FAULT = 25  # a child must have ended by then
ASSUMED_START_SECONDS = 4.0  # until the first step, before any child was measured


@dataclass(frozen=True)
class Outcome:
    """The behaviour of a child under a fault, and the verdict."""

    passed: bool
    observation: str


@dataclass
class Soak:
    """A disturbed run: its config, the directory of its children's output, and its sessions."""

    config: Config
    notes: Path
    deadline: float  # of time.monotonic
    pause: float  # seconds after every step
    sessions: list[Session] = field(default_factory=list)
    starting: list[float] = field(default_factory=list)  # seconds until a child's first step

    @property
    def directory(self) -> Path:
        return Path(self.config.run.directory)

    @property
    def newest(self) -> int | None:
        """The newest finished checkpoint."""
        return next(iter(saved_steps(self.directory / STEPS)), None)

    @contextmanager
    def child(self, fault: Fault | None = None) -> Iterator[Child]:
        """Start a child with this fault, and add its session to `sessions` after the block."""
        with child(
            self.config,
            Order(fault, self.pause),
            self.notes / f"{len(self.sessions):03}",
            self.deadline,
        ) as started:
            try:
                yield started
            finally:
                started.kill()
                self.sessions.append(started.session)


def try_fault(soak: Soak, fault: Fault) -> Outcome:
    """Start a child (or two), disturb it, and return the outcome.

    Raises OutOfTimeError, HungError.
    """
    return TRIES[fault.kind](soak, fault)


def _kill_starting(soak: Soak, fault: Fault) -> Outcome:
    seconds = fault.moment * (median(soak.starting) if soak.starting else ASSUMED_START_SECONDS)
    start = time.monotonic()
    with soak.child(fault) as process:
        process.wait_until(lambda: time.monotonic() > start + seconds)
        return _killed(
            process, "before its first step" if not process.step else "after its first step"
        )


def _kill_in_a_step(soak: Soak, fault: Fault) -> Outcome:
    with soak.child(fault) as process:
        if process.wait_until(lambda: process.step >= fault.step):
            soak.starting.append(_starting(process))
            time.sleep(fault.moment * 3 * soak.pause)
        return _killed(process, "in a step")


def _kill_saving(soak: Soak, fault: Fault) -> Outcome:
    with soak.child(fault) as process:
        if fault.moment < 0.5:
            process.wait_until(lambda: process.saving(fault.step))
            time.sleep(0.5 * fault.moment)
        else:  # as soon as it has its name: its checksums are still missing, or just there
            process.wait_until(
                lambda: (soak.newest or 0) >= max(fault.step, (process.newest or 0) + 1)
            )
        status = process.kill()
        step = soak.newest
        whole = step is not None and step >= fault.step
        sums = whole and (soak.directory / STEPS / str(step) / CHECKSUMS).exists()
        left = "whole" if sums else "whole but for its checksums" if whole else "unfinished"
        return Outcome(
            status == KILLED, f"left {left}" if status == KILLED else _ended(process, status)
        )


def _killed(process: Child, where: str) -> Outcome:
    status = process.kill()
    return Outcome(status == KILLED, where if status == KILLED else _ended(process, status))


def _ended(process: Child, status: int) -> str:
    return f"ended with status {status}: {process.message[:300]}"


def _starting(process: Child) -> float:
    """Return the seconds from a child's start to its first line."""
    return process.lines(LOG)[0]["time"] - process.start_time


def _message(process: Child, fault: Fault, *words: str) -> Outcome:
    """Expect the child to end soon, by itself, with an error message that has all these words."""
    process.wait_until(
        lambda: (
            process.process.poll() is not None or process.step > fault.step + MAX_STEPS_AFTER_FAULT
        )
    )
    status = process.kill()
    missing = [word for word in words if word not in process.message]
    passed = status == MESSAGE and process.message.startswith("error: ") and not missing
    return Outcome(
        passed, process.message[:300] if passed else f"missing {missing}; {_ended(process, status)}"
    )


def _full_while_saving(soak: Soak, fault: Fault) -> Outcome:
    with soak.child(fault) as process:
        outcome = _message(
            process,
            fault,
            "could not write a checkpoint",
            "before it is intact",
            "start again to continue",
        )
    damage = [] if soak.newest is None else find_damage(soak.directory / STEPS / str(soak.newest))
    intact = f"Step {soak.newest} before it is intact" in process.message and not damage
    return Outcome(outcome.passed and intact, "; ".join([outcome.observation, *damage]))


def _full(soak: Soak, fault: Fault) -> Outcome:
    with soak.child(fault) as process:
        return _message(process, fault, "could not write", "start again to continue")


def _damaged_checkpoint(soak: Soak, fault: Fault) -> Outcome:
    """Damage the newest checkpoint and start again.

    The child is stopped first, so that the checkpoint has checksums; then its largest file is
    changed.
    """
    with soak.child() as process:
        if (
            not process.wait_until(lambda: process.step >= fault.step)
            or process.stop() != INTERRUPTED
        ):
            return Outcome(False, _ended(process, process.kill()))
    steps = saved_steps(soak.directory / STEPS)
    files = [path for path in (soak.directory / STEPS / str(steps[0])).rglob("*") if path.is_file()]
    flip(max(files, key=lambda path: path.stat().st_size), fault.moment)
    with soak.child(fault) as process:
        process.wait_until(lambda: bool(process.step))
        events = {event["event"]: event for event in process.lines(EVENTS)}
    aside = list((soak.directory / "damaged").glob(f"{steps[0]}.*"))
    named = events.get("damaged", {}).get("checkpoint")
    resumed = events.get("resumed", {}).get("from")
    observation = (
        f"checkpoint {named} named and set aside in {len(aside)} place, went on from {resumed}"
    )
    return Outcome(bool(aside) and (named, resumed) == (steps[0], steps[1]), observation)


def flip(file: Path, moment: float, least: float = 0.0, most: float = 1.0, every: int = 0):
    """Change one byte of a file, or one of `every` bytes.

    Only bytes between the fractions `least` and `most` of the file are changed.
    """
    content = bytearray(file.read_bytes())
    begin, end = int(least * len(content)), int(most * len(content))
    first = begin + int(moment * (every or end - begin))
    for place in range(first, end, every or end):
        content[place] ^= 0xFF
    file.write_bytes(content)


def _damaged_shard(part: str) -> Callable[[Soak, Fault], Outcome]:
    """Return a trial of a truncated shard, or of changed records or a changed index.

    The file is restored afterwards.
    """

    def attempt(soak: Soak, fault: Fault) -> Outcome:
        shards = find_shards(soak.config.data.directory, "docs", "train")
        shard = random.Random(fault.moment).choice(shards)
        file = index_path(shard) if part == "index" else shard
        before = file.read_bytes()
        if part == "cut short":
            file.write_bytes(before[: int((0.3 + 0.6 * fault.moment) * len(before))])
        else:
            # The second half is left alone: a shard is opened by what follows its records.
            flip(file, fault.moment, least=0.05, most=0.5, every=64)
        try:
            with soak.child(fault) as process:
                return _message(process, fault, file.name)
        finally:
            file.write_bytes(before)

    return attempt


def _slow_data(soak: Soak, fault: Fault) -> Outcome:
    with soak.child(fault) as process:
        if not process.wait_until(lambda: process.step >= fault.step):
            return Outcome(False, _ended(process, process.ended()))
        status = process.stop()
        waited = median(line["waiting"] for line in process.lines(LOG))
    return Outcome(
        status == INTERRUPTED and waited > 0.3, f"waited for data {100 * waited:.0f} % of the time"
    )


def _dead_data(soak: Soak, fault: Fault) -> Outcome:
    with soak.child(fault) as process:
        status = process.ended()
        died = DIED in process.output_file.read_text(errors="replace", encoding="utf-8")
        return Outcome(
            status > 0 and died,
            f"ended with status {status} and its error" if died else _ended(process, status),
        )


def _stuck_data(soak: Soak, fault: Fault) -> Outcome:
    with soak.child(fault) as process:
        status = process.ended()
        named = (
            "no step was finished in" in process.message
            and "read_or_block" in process.output_file.read_text(errors="replace", encoding="utf-8")
        )
        observation = f"ended with status {status}, its message and where the worker stood"
        return Outcome(
            status == EXIT_STATUS and named, observation if named else _ended(process, status)
        )


def _clock(soak: Soak, fault: Fault) -> Outcome:
    """Let the clock jump; the child must go on until it is stopped.

    If a checkpoint was being written, which appears to take days, it must report that and end.
    """
    with soak.child(fault) as process:
        if not process.wait_until(lambda: process.step >= fault.step and _jumped(process)):
            outcome = _message(
                process, fault, "could not write a checkpoint", "start again to continue"
            )
            return Outcome(outcome.passed, f"jumped while saving: {outcome.observation}")
        saved, status = soak.newest, process.stop()
        if status == MESSAGE and "could not write a checkpoint" in process.message:
            return Outcome(True, f"jumped while saving: {process.message[:300]}")
        lines = len(process.lines(LOG))
        observation = f"{lines} steps with a jump of a day among them, stopped when asked, saved"
    return Outcome(
        status == INTERRUPTED and soak.newest != saved,
        observation if status == INTERRUPTED else _ended(process, status),
    )


def _jumped(process: Child) -> bool:
    """Return True if the times of the child's lines jump."""
    times = [line["time"] for line in process.lines(EVENTS)[:1] + process.lines(LOG)]
    return max(times) - min(times) > DAY / 2


TRIES: dict[Kind, Callable[[Soak, Fault], Outcome]] = {
    "kill: starting": _kill_starting,
    "kill: in a step": _kill_in_a_step,
    "kill: saving": _kill_saving,
    "full disk: checkpoint": _full_while_saving,
    "full disk: log": _full,
    "damaged checkpoint": _damaged_checkpoint,
    "damaged shard: records": _damaged_shard("records"),
    "damaged shard: cut short": _damaged_shard("cut short"),
    "damaged shard: index": _damaged_shard("index"),
    "data worker: slow": _slow_data,
    "data worker: dead": _dead_data,
    "data worker: stuck": _stuck_data,
    "clock: a day on": _clock,
    "clock: a day back": _clock,
}
