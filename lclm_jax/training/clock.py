"""Time of training steps, and the part of it spent waiting for data."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class StepClock:
    """A clock that is read once a step: seconds since it was last read, and those of waiting."""

    def __init__(self):
        self.start, self.waited = time.perf_counter(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Measure time spent waiting for data: an upper bound of the devices' idle time."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Leave work that is no part of a step, such as validation, out of the step's time."""
        start = time.perf_counter()
        yield
        self.start += time.perf_counter() - start

    def read(self) -> tuple[float, float]:
        """Return the seconds since the last call, and those of them spent waiting for data."""
        now = time.perf_counter()
        seconds, waited = now - self.start, self.waited
        self.start, self.waited = now, 0.0
        return seconds, waited
