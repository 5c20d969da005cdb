"""Train a tiny model under faults and compare it with the same run undisturbed.

python -m tests.soak RUN_DIR

The faults: kills at random moments, a full disk, damaged checkpoints and shards, slow and dead
data workers, numbers that are not finite, jumps of the clock. Exit status 1 means that a fault
was not handled, the runs differ, or a fault was not tried in time. RUN_DIR/soak.json has all
results, RUN_DIR/children the orders and the output of every child.
"""

import json
import logging
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from lclm_jax.cli import make_parser, path, run, setting, show_table
from lclm_jax.config import Config
from lclm_jax.config.settings import Count, Positive, Seed
from lclm_jax.files.atomic import write_whole
from lclm_jax.progress import progress_bar
from tests.soak.child import HungError, OutOfTimeError, child
from tests.soak.compare import compare
from tests.soak.faults import Order
from tests.soak.plan import KINDS, Fault, Kind, make_plan
from tests.soak.tries import Outcome, Soak, try_fault
from tests.soak.work import soak_config, write_work

log = logging.getLogger(__name__)
STEPS = 120  # of each of the two stages
PAUSE_SECONDS = 0.02  # after every step of a disturbed child
FILES = ("children", "undisturbed", "disturbed", "programs", "data", "soak.json")


@dataclass(frozen=True)
class Try:
    """A fault and its outcome, which is None where there was no time for it."""

    fault: Fault
    outcome: Outcome | None
    seconds: float = 0.0


@dataclass(frozen=True)
class Row:
    """A row of the printed table."""

    what: str
    times: int
    observation: str
    passed: bool


def main():
    parser = make_parser(__doc__)
    parser.add_argument(
        "directory",
        type=path,
        metavar="RUN_DIR",
        help="a new one, or that of an earlier soak, which is removed",
    )
    parser.add_argument(
        "--seed", type=setting(Seed), default=0, help="of order and moments (default: %(default)s)"
    )
    parser.add_argument("--kills", type=setting(Count), default=30, help="(default: %(default)s)")
    parser.add_argument(
        "--minutes",
        type=setting(Positive),
        default=10.0,
        help="in which it must be done (default: %(default)s)",
    )
    arguments = parser.parse_args()
    plan = make_plan(arguments.seed, arguments.kills, 2 * STEPS)
    start = time.monotonic()
    rows, tries = soak(arguments.directory.resolve(), plan, STEPS, start + 60 * arguments.minutes)
    seconds = time.monotonic() - start
    passed = all(row.passed for row in rows)
    report = {
        "passed": passed,
        "seed": arguments.seed,
        "seconds": seconds,
        "rows": rows,
        "tries": tries,
    }
    write_whole(arguments.directory / "soak.json", json.dumps(report, indent=2, default=asdict))
    tried = sum(attempt.outcome is not None for attempt in tries)
    show_table(
        draw(
            rows,
            f"{tried} faults in {seconds:.0f} s, seed {arguments.seed}",
        )
    )
    sys.exit(0 if passed else 1)


def soak(
    directory: Path, plan: Sequence[Fault], steps: int, deadline: float
) -> tuple[list[Row], list[Try]]:
    """Train undisturbed, then with every fault of the plan, and compare both runs.

    A fault that is not tried by the deadline (of time.monotonic) is a row that did not pass.
    Raises FileExistsError as `remove_earlier` does.
    """
    remove_earlier(directory)
    write_work(directory / "data")
    alone, config = (
        soak_config(directory / "data", directory / name, steps)
        for name in ("undisturbed", "disturbed")
    )
    soaked = Soak(config, directory / "children", deadline, PAUSE_SECONDS)
    tries: list[Try] = []
    late = None
    with progress_bar("soak", len(plan) + 2) as show:
        try:
            show(0, "undisturbed")
            train_alone(alone, soaked)
            for number, fault in enumerate(plan, start=1):
                show(number, fault.kind)
                tries.append(attempt(soaked, fault))
            show(len(plan) + 1, "to the end")
            end_quietly(soaked)
            show(len(plan) + 2, "")
        except OutOfTimeError as error:
            late = str(error)
    tries += [Try(fault, None) for fault in plan[len(tries) :]]
    rows = [
        summary(kind, [attempt for attempt in tries if attempt.fault.kind == kind])
        for kind in KINDS
        if any_of(kind, plan)
    ]
    if late is None:
        outcomes = compare(
            config, Path(alone.run.directory), Path(config.run.directory), soaked.sessions
        )
        rows += [
            Row(name, 1, outcome.observation, outcome.passed) for name, outcome in outcomes.items()
        ]
    else:
        rows.append(
            Row(
                "the same run",
                0,
                f"{late} before the run was finished, so that nothing was compared",
                False,
            )
        )
    return rows, tries


def remove_earlier(directory: Path):
    """Remove the files of an earlier soak.

    Raises FileExistsError for a directory with anything else in it.
    """
    names = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    ended = names & {"children", "soak.json"}  # of which any earlier soak left at least one
    if strange := sorted(names - set(FILES)) or ([] if ended else sorted(names)):
        raise FileExistsError(
            f"{directory} holds {', '.join(strange[:3])}, which is of no soak; name a new directory"
        )
    for name in names:
        path = directory / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def any_of(kind: Kind, plan: Sequence[Fault]) -> bool:
    return any(fault.kind == kind for fault in plan)


def train_alone(config: Config, soaked: Soak):
    """Train the undisturbed run. Raises HungError if it does not finish."""
    with child(config, Order(), soaked.notes / "undisturbed", soaked.deadline) as process:
        if status := process.ended():
            raise HungError(
                f"the undisturbed run ended with status {status}: {process.message}; "
                f"{process.output_file} has more"
            )


def end_quietly(soaked: Soak):
    """Let the disturbed run finish. Raises HungError if it does not."""
    with soaked.child() as process:
        if status := process.ended():
            raise HungError(
                f"the disturbed run ended with status {status}: {process.message}; "
                f"{process.output_file} has more"
            )


def attempt(soaked: Soak, fault: Fault) -> Try:
    """Try a fault; a child that hangs has not passed."""
    start = time.monotonic()
    try:
        outcome = try_fault(soaked, fault)
    except HungError as error:
        outcome = Outcome(False, str(error))
    if not outcome.passed:
        log.warning("%s at step %d: %s", fault.kind, fault.step, outcome.observation)
    return Try(fault, outcome, time.monotonic() - start)


def summary(kind: Kind, tries: Sequence[Try]) -> Row:
    """Summarize a kind of fault: its failures if there are any, else all observations, counted."""
    outcomes = [attempt.outcome for attempt in tries if attempt.outcome is not None]
    failed = [outcome.observation for outcome in outcomes if not outcome.passed]
    observations = failed or [outcome.observation for outcome in outcomes]
    words = [
        f"{observations.count(observation)} {observation}" if len(observations) > 1 else observation
        for observation in dict.fromkeys(observations)
    ]
    missing = len(tries) - len(outcomes)
    words += [f"{missing} not tried: out of time"] if missing else []
    return Row(kind, len(outcomes), "; ".join(words), not failed and not missing)


def draw(rows: Sequence[Row], title: str) -> Table:
    table = Table(title=title)
    for name in ("fault", "times", "seen", "passed"):
        table.add_column(name, justify="right" if name == "times" else "left")
    for row in rows:
        table.add_row(row.what, str(row.times), row.observation, "yes" if row.passed else "NO")
    return table


if __name__ == "__main__":
    run(main)
