"""The child process that trains a cell, and how it ends with its worker however that ends.

The child's standard input is a pipe from the worker. The pipe ends with the worker, even if that
is killed, and until then carries the time at which the worker's lease expires, so that the child
also ends in time when the worker hangs or is suspended.
"""

import contextlib
import os
import select
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from lclm_jax.cli import INTERRUPTED_STATUS
from lclm_jax.sweeps.workers import shared_directory
from lclm_jax.sweeps.workers.leases import Clock

PIPE = "LCLM_JAX_SWEEP_PIPE"  # set in a child, whose standard input is the pipe
TIME = struct.Struct("d")  # seconds of time.monotonic, the same in all processes of a machine
MAX_REASON_BYTES = 2000  # of a log


class Child:
    """A process that trains a cell until a time on its worker's clock, which can be renewed.

    It leads a process group. At the end of a `with` block the whole group is killed.
    """

    def __init__(self, command: Sequence[str], log: Path, expires: float, clock: Clock):
        """Start `command`, with its output appended to `log`. Raises OSError where that fails."""
        self._log = log
        self._clock = clock
        self._expires: float | None = None
        with shared_directory.append(log) as output:
            self._log_start = output.tell()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, PIPE: "1"},
                process_group=0,  # or Ctrl-C would reach it twice
            )
        assert self._process.stdin is not None
        self._pipe = self._process.stdin
        os.set_blocking(self._pipe.fileno(), False)  # a child need not read
        self.renew(expires)

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_):
        self.kill()

    def renew(self, expires: float):
        """Let the child work until `expires`."""
        if expires == self._expires:
            return
        self._expires = expires
        now = time.monotonic()  # first: should this process be suspended here, time is lost
        time_left = expires - self._clock()
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._pipe.fileno(), TIME.pack(now + time_left))

    def wait(self, seconds: float) -> bool:
        """Wait for the child to end. Returns False where it did not in `seconds`."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def terminate(self):
        """Ask the child to save and end."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self):
        """End the child, and whatever is left of the processes it started."""
        if self._pipe.closed:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._pipe.close()

    @property
    def was_interrupted(self) -> bool:
        """True where the child has saved and ended early, as at a notice of maintenance."""
        return self._process.wait() == INTERRUPTED_STATUS

    def describe_end(self) -> str:
        """Return how the child ended, and the last that it wrote."""
        status = self._process.wait()
        ending = f"exit code {status}, and no result"
        if status < 0:
            ending = f"killed by {signal.Signals(-status).name}"
        if status == -signal.SIGKILL:
            ending += ", as the kernel does when memory is short"
        output = shared_directory.read_end(self._log, self._log_start, MAX_REASON_BYTES)
        return f"{ending}\n{output.strip()}".strip()


def end_with_parent():
    """End this process, and those it started, as soon as its worker ends or loses the cell.

    Call it before anything is trained or written, and once in a job: where that has several
    processes, after `distributed.job.join`. It does nothing in a process without a worker.
    """
    if PIPE not in os.environ:
        return
    expires = _read_time(None)
    while expires <= time.monotonic():
        expires = _read_time(0)
    threading.Thread(
        target=_watch_pipe, args=(expires,), name="end with parent", daemon=True
    ).start()


def _watch_pipe(expires: float):
    while True:
        expires = _read_time(max(0, expires - time.monotonic()))


def _read_time(seconds: float | None) -> float:
    """Return the next time in the pipe. Ends this process if none comes within `seconds`."""
    stdin = 0
    ready, _, _ = select.select([stdin], [], [], seconds)
    time_bytes = os.read(stdin, TIME.size) if ready else b""
    if not time_bytes:
        _end()
    return TIME.unpack(time_bytes)[0]


def _end() -> NoReturn:
    """End this process and its group. Writes nothing, which may take for ever on a shared disk."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
