"""Ends a run that stands still, so that whoever starts it again can: a hang costs what work costs, and says nothing."""

import faulthandler
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOOKS = 10  # in the time a run may stand still
STOOD_STILL = 1  # exit status


@contextmanager
def watchdog(
    seconds: float | None, end: Callable[[float], None] | None = None
) -> Iterator[Callable[[], None]]:
    """Yields what is to be called at every sign of life, and calls `end` after so many seconds without one; None: never.

    Its looks are counted, not the clock, so that a process that was halted itself is not taken for one that hangs.
    """
    silent, over = [0], threading.Event()

    def alive():
        silent[0] = 0

    def watch(between: float):
        while not over.wait(between):
            silent[0] += 1
            if silent[0] > LOOKS:
                (end or _end)(between * LOOKS)
                return

    if seconds is not None:
        threading.Thread(
            target=watch, args=(seconds / LOOKS,), name="watchdog", daemon=True
        ).start()
    try:
        yield alive
    finally:
        over.set()


def _end(seconds: float):
    """Where every thread stands, a message, and the end: a thread that hangs cannot be interrupted in order."""
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    sys.stderr.write(
        f"error: no step was finished in {seconds:.0f} s (run.step_timeout); above is where every thread stood. "
        "Start the run again: it continues from its newest checkpoint.\n"
    )
    sys.stderr.flush()
    os._exit(STOOD_STILL)
