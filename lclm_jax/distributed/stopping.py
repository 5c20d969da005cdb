"""Requests to stop: a signal or a maintenance notice to one process stops all at the same step."""

import logging
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lclm_jax.distributed.sharding import replicated

log = logging.getLogger(__name__)
# The metadata server of Google Cloud machines; $GCE_METADATA_HOST names another one.
METADATA_HOST = "metadata.google.internal"
# Metadata key -> values that do not ask for a stop. A live migration does not disturb a program,
# and machines with accelerators are never migrated.
HARMLESS_VALUES = {
    "maintenance-event": ("NONE", "MIGRATE_ON_HOST_MAINTENANCE"),
    "preempted": ("FALSE",),
}
LONG_POLL_SECONDS = 300  # after which the server answers though nothing has changed
RETRY_SECONDS = 10
FIRST_QUERY_TIMEOUT_SECONDS = 5


class StopRequest:
    """State of the request to stop, of this process and of all processes together."""

    def __init__(self):
        self.asked = False
        self.reason = "another process was asked to"
        self._any_asked: jax.Array | None = None

    def agreed(self, mesh: Mesh) -> bool:
        """Return True where any process was asked to stop.

        All processes get the same answer at the same call, so each step must call this once. With
        several processes the answer is that of the previous call, so that none waits for the
        running step.
        """
        if jax.process_count() == 1:
            return self.asked
        previous, self._any_asked = self._any_asked, _any_process(self.asked, mesh)
        return previous is not None and bool(previous)


def _any_process(asked: bool, mesh: Mesh) -> jax.Array:
    """Compute on all devices if `asked` is true in any process; does not wait for the result."""
    split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    by_device = jax.make_array_from_callback((mesh.size,), split, lambda _: np.array([asked]))
    return jax.jit(jnp.any, out_shardings=replicated(mesh))(by_device)


def _watch_metadata(request: StopRequest, key: str, harmless: tuple[str, ...]):
    """Wait for a maintenance notice of Google Cloud; return at once on any other machine."""
    host = os.environ.get("GCE_METADATA_HOST", METADATA_HOST)
    url = f"http://{host}/computeMetadata/v1/instance/{key}"
    long_poll = f"{url}?wait_for_change=true&timeout_sec={LONG_POLL_SECONDS}"
    value = _query(url, FIRST_QUERY_TIMEOUT_SECONDS)
    while value in harmless:
        answer = _query(long_poll, LONG_POLL_SECONDS + 10)
        if answer is None:
            time.sleep(RETRY_SECONDS)
        value = answer or value
    if value:
        log.warning("Google Cloud reports %s: %s; stopping", key, value)
        request.asked, request.reason = True, f"{key}: {value}"


def _query(url: str, timeout: float) -> str | None:
    """Return the answer of the metadata server, or None without one."""
    try:
        query = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
        with urllib.request.urlopen(query, timeout=timeout) as answer:
            return answer.read().decode().strip()
    except OSError:
        return None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Yield a request that Ctrl-C, SIGTERM or a maintenance notice sets.

    A second Ctrl-C interrupts at once.
    """
    request = StopRequest()
    for key, harmless in HARMLESS_VALUES.items():
        arguments = (request, key, harmless)
        threading.Thread(target=_watch_metadata, args=arguments, name=key, daemon=True).start()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number, frame):
        if request.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.asked, request.reason = True, signal.Signals(number).name

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
