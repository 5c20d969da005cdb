"""The one place where the benchmark writes to the terminal."""

import sys
import time

BEGUN = time.time()


def report(text: str, since: float = BEGUN):
    """Writes a line with the seconds since the command was started, at once."""
    sys.stdout.write(f"[{time.time() - since:6.1f} s] {text}\n")
    sys.stdout.flush()
