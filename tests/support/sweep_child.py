"""A child process of a sweep, which counts to a number instead of training.

python -m tests.support.sweep_child CELL_DIRECTORY BEHAVIOUR

BEHAVIOUR is `count N`, which takes N / 20 s and continues from where an earlier process stopped, or
what happens in place of a result. Several children at a time write the file `overlap`.
"""

import fcntl
import os
import signal
import sys
import time
from pathlib import Path

import tests.support.without_jax  # noqa: F401  # isort: skip
from lclm_jax.files.atomic import write_whole
from lclm_jax.sweeps.workers import shared_directory
from lclm_jax.sweeps.workers.child import end_with_parent

HOST = "SWEEP_HOST"  # in the environment: this host of a slice; all but the first only wait
STEP_SECONDS = 0.05
STUBBORN_SECONDS = 600


def main():
    cell, behaviour, *arguments = Path(sys.argv[1]), *sys.argv[2].split(" ", 1)
    end_with_parent()
    if os.environ.get(HOST, "0") != "0":
        write(f"child {os.getpid()} follows\n")
        time.sleep(STUBBORN_SECONDS)
    with (cell / "running").open("w", encoding="utf-8") as running:
        try:
            fcntl.flock(running, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            (cell / "overlap").touch()
        with (cell / "children").open("a", encoding="utf-8") as children:
            children.write(f"{os.getpid()}\n")
        write(f"child {os.getpid()} works\n")
        BEHAVIOURS[behaviour](cell, *arguments)


def write(text: str):
    sys.stdout.write(text)
    sys.stdout.flush()


def count(cell: Path, number: str):
    """Count and write the result; a result that exists is an error."""
    progress = cell / "progress"
    done = int(progress.read_text(encoding="utf-8")) if progress.exists() else 0
    while done < int(number):
        time.sleep(STEP_SECONDS)
        done += 1
        write_whole(progress, f"{done}")
    if not shared_directory.create(cell / "result.json", "{}"):
        (cell / "overlap").touch()


def fail(cell: Path, message: str = ""):
    sys.exit(message or 1)


def die(cell: Path):
    os.kill(os.getpid(), signal.SIGKILL)


def end(cell: Path):
    """End well, but without a result."""


def save(cell: Path):
    """Work until SIGTERM, then save and end well."""

    def handle(*_):
        (cell / "saved").touch()
        sys.exit()

    signal.signal(signal.SIGTERM, handle)
    (cell / "ready").touch()
    time.sleep(STUBBORN_SECONDS)


def ignore(cell: Path):
    """Work on after SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (cell / "ready").touch()
    time.sleep(STUBBORN_SECONDS)


def interrupt(cell: Path):
    """End as a command that was interrupted and has saved."""
    sys.exit(130)


def spawn(cell: Path):
    """Start a process that would outlive this one, as a data worker might."""
    process = os.spawnlp(os.P_NOWAIT, "sleep", "sleep", f"{STUBBORN_SECONDS}")
    write_whole(cell / "spawned", f"{process}")
    time.sleep(STUBBORN_SECONDS)


def meet(cell: Path):
    """Write the result once a child on host 1 follows."""
    other = cell / "log-1.txt"
    while not (other.exists() and other.read_text(encoding="utf-8")):
        time.sleep(STEP_SECONDS)
    shared_directory.create(cell / "result.json", "{}")


BEHAVIOURS = {
    function.__name__: function
    for function in (count, fail, die, end, save, ignore, interrupt, spawn, meet)
}

if __name__ == "__main__":
    main()
