"""Supervision of a child process: sign of life for it, and the end of both in good order."""

from collections.abc import Callable

from lclm_jax.sweeps.workers.child import Child
from lclm_jax.sweeps.workers.intervals import Intervals
from lclm_jax.sweeps.workers.leases import Clock
from lclm_jax.sweeps.workers.stop_signal import StopSignal

TICK_SECONDS = 0.5  # between two looks at a child and at requests to stop


def supervise(
    child: Child,
    keep: Callable[[], float],
    stop: StopSignal,
    intervals: Intervals,
    clock: Clock,
):
    """Wait until a child ends. `keep()` is called often and returns until when it may work.

    After a request to stop the child is asked to end, and killed where it does not in time. An
    error of `keep` ends the supervision, but not the child.
    """
    tick = min(TICK_SECONDS, intervals.heartbeat / 4, intervals.poll / 4)
    kill_time = None
    while not child.wait(tick):
        if stop.received and kill_time is None:
            child.terminate()
            kill_time = clock() + intervals.grace
        if kill_time is not None and clock() >= kill_time:
            child.kill()
            return
        child.renew(keep())
