"""What the processes of a run do together beside computing. In a run of one process nothing here waits for anybody."""

import itertools
import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import jax
from jax._src.distributed import (
    global_state,  # jax.distributed offers no way to wait that leaves the devices alone
)

from lclm_jax.errors import UserError

_tasks = itertools.count()  # all processes count the same
_PATIENCE = 7 * 24 * 3600 * 1000  # milliseconds; should process 0 die, its heartbeat ends the wait
_SEEN = 20  # seconds until what one host writes is seen by all


class ProcessError(UserError):
    """Process 0 could not do what all processes need."""


def is_first() -> bool:
    """Whether this is the process that writes what is written once."""
    return jax.process_index() == 0


def once(name: str, task: Callable[[], str | None]) -> str | None:
    """Runs `task` in process 0 while the others wait, and returns in all of them what it returned.

    Raises in all of them when it fails; `name` says what it does.
    """
    if jax.process_count() == 1:
        return task()
    key = f"lclm_jax/once/{next(_tasks)}"
    client = global_state.client
    assert client is not None
    if not is_first():
        done, _, result = client.blocking_key_value_get(key, _PATIENCE).partition(":")
        if done != "done":
            raise ProcessError(f"process 0 failed to {name}; its output says why")
        return result
    outcome = "failed"
    try:
        result = task()
        outcome = f"done:{result or ''}"
    finally:
        client.key_value_set(key, outcome)
    return result


def gather(text: str) -> list[str]:
    """What every process says, in their order; all of them hear it."""
    client, count = global_state.client, jax.process_count()
    if client is None or count == 1:
        return [text]
    key = f"lclm_jax/gather/{next(_tasks)}"
    client.key_value_set(f"{key}/{jax.process_index()}", text)
    heard = once(
        "hear from all processes",
        lambda: json.dumps(
            [
                client.blocking_key_value_get(f"{key}/{process}", _PATIENCE)
                for process in range(count)
            ]
        ),
    )
    assert heard is not None
    return json.loads(heard)


def check_shared(directory: Path):
    """Raises ProcessError in all processes unless all see what process 0 writes to `directory`: their checkpoints would hang."""
    if jax.process_count() == 1:
        return
    mark, token = directory / ".shared", uuid.uuid4().hex
    token = once(
        f"write to {directory}", lambda: mark.write_text(token, encoding="utf-8") and token
    )
    told = gather("sees" if _sees(mark, token) else "blind")
    if blind := ", ".join(str(process) for process, word in enumerate(told) if word == "blind"):
        raise ProcessError(
            f"process {blind} does not see what process 0 writes to {directory}; set run.directory to one that all hosts share"
        )


def _sees(mark: Path, token: str | None) -> bool:
    """Whether the mark is there, or comes: a network's file system may take its time."""
    deadline = time.monotonic() + _SEEN
    while not (mark.exists() and mark.read_text(encoding="utf-8") == token):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True
