"""Coordination between the processes of a run: one does a task for all, or all exchange texts.

In a run of one process every function returns at once.
"""

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

# Numbers the keys of the key-value store: all processes call the functions below in one order.
_task_numbers = itertools.count()
# Only bounds the wait: should process 0 die, its missing heartbeat ends the others.
WAIT_MILLISECONDS = 7 * 24 * 3600 * 1000
# A network file system may need this long to show to one host what another one wrote.
NFS_VISIBILITY_SECONDS = 20


class ProcessError(UserError):
    """Process 0 could not do what all processes need."""


def is_first() -> bool:
    """Return True in the process that writes what is written only once."""
    return jax.process_index() == 0


def once(name: str, task: Callable[[], str | None]) -> str | None:
    """Run `task` in process 0 while the others wait; all return its result.

    Raises in all processes where the task fails: ProcessError with `name`, a verb phrase such as
    "write checksums", in those that waited.
    """
    if jax.process_count() == 1:
        return task()
    key = f"lclm_jax/once/{next(_task_numbers)}"
    client = global_state.client
    assert client is not None
    if not is_first():
        done, _, result = client.blocking_key_value_get(key, WAIT_MILLISECONDS).partition(":")
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
    """Return the texts of all processes, in the order of their indices."""
    client, count = global_state.client, jax.process_count()
    if client is None or count == 1:
        return [text]
    key = f"lclm_jax/gather/{next(_task_numbers)}"
    client.key_value_set(f"{key}/{jax.process_index()}", text)
    texts = once(
        "hear from all processes",
        lambda: json.dumps(
            [
                client.blocking_key_value_get(f"{key}/{process}", WAIT_MILLISECONDS)
                for process in range(count)
            ]
        ),
    )
    assert texts is not None
    return json.loads(texts)


def check_shared(directory: Path):
    """Check that all processes see what process 0 writes to `directory`.

    Raises ProcessError in all of them otherwise, where their checkpoints would hang.
    """
    if jax.process_count() == 1:
        return
    mark, token = directory / ".shared", uuid.uuid4().hex

    def write_mark() -> str:
        mark.write_text(token, encoding="utf-8")
        return token

    shared_token = once(f"write to {directory}", write_mark)
    answers = gather("yes" if _wait_for(mark, shared_token) else "no")
    blind = ", ".join(str(process) for process, answer in enumerate(answers) if answer == "no")
    if blind:
        raise ProcessError(
            f"process {blind} does not see what process 0 writes to {directory}; set run.directory "
            "to one that all hosts share"
        )


def _wait_for(mark: Path, token: str | None) -> bool:
    """Return True as soon as the file holds `token`, False after NFS_VISIBILITY_SECONDS."""
    deadline = time.monotonic() + NFS_VISIBILITY_SECONDS
    while not (mark.exists() and mark.read_text(encoding="utf-8") == token):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True
