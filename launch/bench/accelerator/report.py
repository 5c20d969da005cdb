"""Progress lines of the benchmark on the terminal."""

import sys
import time

STARTED = time.time()


def report(text: str, since: float = STARTED):
    """Write a line with the seconds since the command started, and flush it."""
    sys.stdout.write(f"[{time.time() - since:6.1f} s] {text}\n")
    sys.stdout.flush()
