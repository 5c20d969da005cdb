"""What is done to one child of a soak, by the kind of fault, and whether it behaved as it should."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from lclm_jax.checkpoint.steps import saved_steps
from lclm_jax.config import Config
from lclm_jax.data.prepare.shards import find_shards, index_path
from lclm_jax.files.checksums import CHECKSUMS, find_damage
from lclm_jax.files.run_layout import EVENTS, LOG, STEPS
from lclm_jax.training.watchdog import EXIT_STATUS
from tests.soak.child import Child, Session, child
from tests.soak.faults import DAY, DIED, Order
from tests.soak.plan import Fault, Kind

MESSAGE, INTERRUPTED, KILLED = (
    2,
    130,
    -9,
)  # exit statuses: an error's message, asked to stop, SIGKILL
SOON = 25  # steps after a fault in which a child must have ended
STARTING = 4.0  # seconds until the first step, until it is known


@dataclass(frozen=True)
class Outcome:
    """What was seen of a child, and whether that is as it should be."""

    passed: bool
    seen: str


@dataclass
class Soak:
    """A disturbed run: its config, where its children leave what they say, and what they did so far."""

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
        """A child with this fault; what it did is remembered."""
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
    """Starts a child (or two), disturbs it, and says what it did. Raises OutOfTimeError, HungError."""
    return TRIES[fault.kind](soak, fault)


def _kill_starting(soak: Soak, fault: Fault) -> Outcome:
    seconds = fault.moment * (median(soak.starting) if soak.starting else STARTING)
    begun = time.monotonic()
    with soak.child(fault) as one:
        one.wait_until(lambda: time.monotonic() > begun + seconds)
        return _killed(one, "before its first step" if not one.step else "after its first step")


def _kill_in_a_step(soak: Soak, fault: Fault) -> Outcome:
    with soak.child(fault) as one:
        if one.wait_until(lambda: one.step >= fault.step):
            soak.starting.append(_starting(one))
            time.sleep(fault.moment * 3 * soak.pause)
        return _killed(one, "in a step")


def _kill_saving(soak: Soak, fault: Fault) -> Outcome:
    with soak.child(fault) as one:
        if fault.moment < 0.5:
            one.wait_until(lambda: one.saving(fault.step))
            time.sleep(0.5 * fault.moment)
        else:  # as soon as it has its name: its checksums are still missing, or just there
            one.wait_until(lambda: (soak.newest or 0) >= max(fault.step, (one.newest or 0) + 1))
        status = one.kill()
        step = soak.newest
        whole = step is not None and step >= fault.step
        sums = whole and (soak.directory / STEPS / str(step) / CHECKSUMS).exists()
        left = "whole" if sums else "whole but for its checksums" if whole else "unfinished"
        return Outcome(
            status == KILLED, f"left {left}" if status == KILLED else _ended(one, status)
        )


def _killed(one: Child, where: str) -> Outcome:
    status = one.kill()
    return Outcome(status == KILLED, where if status == KILLED else _ended(one, status))


def _ended(one: Child, status: int) -> str:
    return f"ended with status {status}: {one.message[:300]}"


def _starting(one: Child) -> float:
    """Seconds from a child's start to its first line."""
    return one.lines(LOG)[0]["time"] - one.begun


def _message(one: Child, fault: Fault, *words: str) -> Outcome:
    """Passed if the child ends by itself with an error's message that has all these words, and soon."""
    one.wait_until(lambda: one.process.poll() is not None or one.step > fault.step + SOON)
    status = one.kill()
    missing = [word for word in words if word not in one.message]
    passed = status == MESSAGE and one.message.startswith("error: ") and not missing
    return Outcome(
        passed, one.message[:300] if passed else f"missing {missing}; {_ended(one, status)}"
    )


def _full_while_saving(soak: Soak, fault: Fault) -> Outcome:
    with soak.child(fault) as one:
        outcome = _message(
            one,
            fault,
            "could not write a checkpoint",
            "before it is intact",
            "start again to continue",
        )
    found = [] if soak.newest is None else find_damage(soak.directory / STEPS / str(soak.newest))
    intact = f"Step {soak.newest} before it is intact" in one.message and not found
    return Outcome(outcome.passed and intact, "; ".join([outcome.seen, *found]))


def _full(soak: Soak, fault: Fault) -> Outcome:
    with soak.child(fault) as one:
        return _message(one, fault, "could not write", "start again to continue")


def _damaged_checkpoint(soak: Soak, fault: Fault) -> Outcome:
    """A child is stopped in order, so that a checkpoint is newest and has its checksums; then its largest file is changed."""
    with soak.child() as one:
        if not one.wait_until(lambda: one.step >= fault.step) or one.stop() != INTERRUPTED:
            return Outcome(False, _ended(one, one.kill()))
    steps = saved_steps(soak.directory / STEPS)
    files = [path for path in (soak.directory / STEPS / str(steps[0])).rglob("*") if path.is_file()]
    flip(max(files, key=lambda path: path.stat().st_size), fault.moment)
    with soak.child(fault) as one:
        one.wait_until(lambda: bool(one.step))
        told = {event["event"]: event for event in one.lines(EVENTS)}
    aside = list((soak.directory / "damaged").glob(f"{steps[0]}.*"))
    named = told.get("damaged", {}).get("checkpoint")
    resumed = told.get("resumed", {}).get("from")
    seen = f"checkpoint {named} named and set aside in {len(aside)} place, went on from {resumed}"
    return Outcome(bool(aside) and (named, resumed) == (steps[0], steps[1]), seen)


def flip(file: Path, moment: float, least: float = 0.0, most: float = 1.0, every: int = 0):
    """Changes a byte of a file, or one in every so many, of the part from `least` to `most` of it."""
    content = bytearray(file.read_bytes())
    begin, end = int(least * len(content)), int(most * len(content))
    first = begin + int(moment * (every or end - begin))
    for place in range(first, end, every or end):
        content[place] ^= 0xFF
    file.write_bytes(content)


def _damaged_shard(part: str) -> Callable[[Soak, Fault], Outcome]:
    """Tries a shard that was cut short, or whose records or index are not as they were written; it is brought back afterwards."""

    def attempt(soak: Soak, fault: Fault) -> Outcome:
        shards = find_shards(soak.config.data.directory, "docs", "train")
        shard = random.Random(fault.moment).choice(shards)
        file = index_path(shard) if part == "index" else shard
        before = file.read_bytes()
        if part == "cut short":
            file.write_bytes(before[: int((0.3 + 0.6 * fault.moment) * len(before))])
        else:
            flip(
                file, fault.moment, least=0.05, most=0.5, every=64
            )  # what follows the records is needed to open it
        try:
            with soak.child(fault) as one:
                return _message(one, fault, file.name)
        finally:
            file.write_bytes(before)

    return attempt


def _slow_data(soak: Soak, fault: Fault) -> Outcome:
    with soak.child(fault) as one:
        if not one.wait_until(lambda: one.step >= fault.step):
            return Outcome(False, _ended(one, one.ended()))
        status = one.stop()
        waited = median(line["waiting"] for line in one.lines(LOG))
    return Outcome(
        status == INTERRUPTED and waited > 0.3, f"waited for data {100 * waited:.0f} % of the time"
    )


def _dead_data(soak: Soak, fault: Fault) -> Outcome:
    with soak.child(fault) as one:
        status = one.ended()
        died = DIED in one.said.read_text(errors="replace", encoding="utf-8")
        return Outcome(
            status > 0 and died,
            f"ended with status {status} and its error" if died else _ended(one, status),
        )


def _stuck_data(soak: Soak, fault: Fault) -> Outcome:
    with soak.child(fault) as one:
        status = one.ended()
        said = "no step was finished in" in one.message and "read_or_block" in one.said.read_text(
            errors="replace", encoding="utf-8"
        )
        seen = f"ended with status {status}, its message and where the worker stood"
        return Outcome(status == EXIT_STATUS and said, seen if said else _ended(one, status))


def _clock(soak: Soak, fault: Fault) -> Outcome:
    """The child goes on until it is stopped; or, if a checkpoint was being written, which takes days now, it says so and ends."""
    with soak.child(fault) as one:
        if not one.wait_until(lambda: one.step >= fault.step and _jumped(one)):
            outcome = _message(
                one, fault, "could not write a checkpoint", "start again to continue"
            )
            return Outcome(outcome.passed, f"jumped while saving: {outcome.seen}")
        saved, status = soak.newest, one.stop()
        if status == MESSAGE and "could not write a checkpoint" in one.message:
            return Outcome(True, f"jumped while saving: {one.message[:300]}")
        lines = len(one.lines(LOG))
        seen = f"{lines} steps with a jump of a day among them, stopped when asked, saved"
    return Outcome(
        status == INTERRUPTED and soak.newest != saved,
        seen if status == INTERRUPTED else _ended(one, status),
    )


def _jumped(one: Child) -> bool:
    """Whether the times of its lines do."""
    times = [line["time"] for line in one.lines(EVENTS)[:1] + one.lines(LOG)]
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
