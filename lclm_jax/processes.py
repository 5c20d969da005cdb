"""What the processes of a run do together beside computing. In a run of one process nothing here waits for anybody."""

import itertools
from collections.abc import Callable

import jax
from jax._src.distributed import global_state  # jax.distributed offers no way to wait that leaves the devices alone

from lclm_jax.errors import UserError

_tasks = itertools.count()  # all processes count the same
_PATIENCE = 7 * 24 * 3600 * 1000  # milliseconds; should process 0 die, its heartbeat ends the wait


class ProcessError(UserError):
    """Process 0 could not do what all processes need."""


def is_first() -> bool:
    """Whether this is the process that writes what is written once."""
    return jax.process_index() == 0


def once(name: str, task: Callable[[], None]):
    """Runs `task` in process 0 while the others wait. Raises in all of them when it fails; `name` tells them what did."""
    if jax.process_count() == 1:
        return task()
    key = f"lclm_jax/once/{next(_tasks)}"
    client = global_state.client
    assert client is not None
    if not is_first():
        if client.blocking_key_value_get(key, _PATIENCE) != "done":
            raise ProcessError(f"process 0 failed to {name}; its output says why")
        return None
    outcome = "failed"
    try:
        task()
        outcome = "done"
    finally:
        client.key_value_set(key, outcome)
    return None
