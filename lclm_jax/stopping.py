"""Requests to stop: a signal to any process of a run stops all of them at the same step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lclm_jax.sharding import replicated


class StopRequest:
    """Whether this process was asked to stop, and whether any was."""

    def __init__(self):
        self.asked = False
        self._any: jax.Array | None = None

    def agreed(self, mesh: Mesh) -> bool:
        """Whether any process was asked: the same in all at the same call, so each step must call it once.

        With several processes it tells what was so at the call before, so that none waits for the step that runs.
        """
        if jax.process_count() == 1:
            return self.asked
        before, self._any = self._any, _any(self.asked, mesh)
        return before is not None and bool(before)


def _any(asked: bool, mesh: Mesh) -> jax.Array:
    """Whether it is so in some process, on every device; not yet there."""
    split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    each = jax.make_array_from_callback((mesh.size,), split, lambda _: np.array([asked]))
    return jax.jit(jnp.any, out_shardings=replicated(mesh))(each)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """A request that Ctrl-C or SIGTERM makes; a second Ctrl-C interrupts at once."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number, frame):
        if request.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
