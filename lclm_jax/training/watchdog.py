"""Kills a training process that has stopped making progress, so that a supervisor can restart it.

A pod that hangs costs as much as one that works, and writes nothing.
"""

import faulthandler
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

CHECKS_PER_TIMEOUT = 10
EXIT_STATUS = 1


@contextmanager
def watchdog(
    timeout: float | None, on_timeout: Callable[[float], None] | None = None
) -> Iterator[Callable[[], None]]:
    """Yield a function to call whenever the run makes progress.

    Calls `on_timeout`, by default one that ends the process, after `timeout` seconds without
    progress; never where `timeout` is None. It counts its own checks, not the clock: a process
    that was suspended does not look as if it hangs.
    """
    checks_without_progress = 0
    finished = threading.Event()

    def report_progress():
        nonlocal checks_without_progress
        checks_without_progress = 0

    def watch(interval: float):
        nonlocal checks_without_progress
        while not finished.wait(interval):
            checks_without_progress += 1
            if checks_without_progress > CHECKS_PER_TIMEOUT:
                (on_timeout or _end_process)(interval * CHECKS_PER_TIMEOUT)
                return

    if timeout is not None:
        interval = timeout / CHECKS_PER_TIMEOUT
        threading.Thread(target=watch, args=(interval,), name="watchdog", daemon=True).start()
    try:
        yield report_progress
    finally:
        finished.set()


def _end_process(seconds: float):
    """Write the stack of every thread and a message, and exit without cleanup.

    A thread that hangs in C++ cannot be interrupted in an orderly way.
    """
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    sys.stderr.write(
        f"error: no step was finished in {seconds:.0f} s (run.step_timeout); the stacks of all "
        "threads are above. Start the run again: it continues from its newest checkpoint.\n"
    )
    sys.stderr.flush()
    os._exit(EXIT_STATUS)
