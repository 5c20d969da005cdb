"""Requests to stop: a signal or a notice of maintenance to any process of a run stops all of them at the same step."""

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
METADATA = "metadata.google.internal"  # what a machine of Google Cloud asks about itself; $GCE_METADATA_HOST names another
# What it is asked, and what says that all is well; a migration disturbs no program, and machines with accelerators have none.
NOTICES = {"maintenance-event": ("NONE", "MIGRATE_ON_HOST_MAINTENANCE"), "preempted": ("FALSE",)}
PATIENCE = 300  # seconds until an answer that has not changed is given all the same
PAUSE = 10  # seconds after a question without an answer


class StopRequest:
    """Whether this process was asked to stop, and whether any was."""

    def __init__(self):
        self.asked = False
        self.reason = "another process was asked to"
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


def _heed(request: StopRequest, name: str, well: tuple[str, ...]):
    """Waits for a notice of Google Cloud to this machine; ends at once on any other machine."""
    url = (
        f"http://{os.environ.get('GCE_METADATA_HOST', METADATA)}/computeMetadata/v1/instance/{name}"
    )
    said = _ask(url, 5)
    while said in well:
        heard = _ask(f"{url}?wait_for_change=true&timeout_sec={PATIENCE}", PATIENCE + 10)
        if heard is None:
            time.sleep(PAUSE)
        said = heard or said
    if said:
        log.warning("Google Cloud says %s: %s; stopping", name, said)
        request.asked, request.reason = True, f"{name}: {said}"


def _ask(url: str, timeout: float) -> str | None:
    """The answer of the metadata server; None without one."""
    try:
        question = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
        with urllib.request.urlopen(question, timeout=timeout) as answer:
            return answer.read().decode().strip()
    except OSError:
        return None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """A request that Ctrl-C, SIGTERM or a notice of maintenance makes; a second Ctrl-C interrupts at once."""
    request = StopRequest()
    for name, well in NOTICES.items():
        threading.Thread(target=_heed, args=(request, name, well), name=name, daemon=True).start()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number, frame):
        if request.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.asked, request.reason = True, signal.Signals(number).name

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
