"""SIGTERM and SIGINT as a request to stop, for processes without JAX."""

import signal
import threading
import time

SIGNALS = (signal.SIGTERM, signal.SIGINT)
TICK_SECONDS = 0.1  # from a signal to the end of a pause, at most


class StopSignal:
    """A request to stop, made by a signal to this process during a `with` block."""

    def __init__(self):
        self.received = False
        self._previous = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def pause(self, seconds: float):
        """Sleep, but not beyond a request to stop."""
        end = time.monotonic() + seconds
        while not self.received and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, TICK_SECONDS))

    def _receive(self, number, frame):
        self.received = True
