"""The processes of a training job: how they find each other, and what a dying one reports.

On a TPU slice, in a JobSet and under SLURM, JAX itself knows how many processes there are.
Elsewhere each process gets

    JAX_COORDINATOR_ADDRESS=HOST:PORT   of process 0
    JAX_NUM_PROCESSES=N
    JAX_PROCESS_ID=0 ... N - 1

and with none of these a process is alone. LCLM_JAX_START_SECONDS is how long the first process
waits for the last to start.

When a process dies, JAX's runtime aborts all others from C++, where Python cannot report why. So
each worker has a small parent process, which passes on what the worker writes, prints the cause
last, and ends with the worker's status.
"""

import ctypes
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

import jax

# The only place that knows whether jax.distributed would find a cluster.
from jax._src.clusters import ClusterEnv

from lclm_jax.errors import UserError

HEARTBEAT_SECONDS = 30  # a process that gives no sign of life for so long is dead
START_SECONDS = 40  # for all processes to start, unless LCLM_JAX_START_SECONDS is set
SETTINGS = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
WORKER = "LCLM_JAX_WORKER"  # set by the parent
MAX_OUTPUT_LINES = 500  # of the worker, among which the parent looks for the process that died
PR_SET_PDEATHSIG = 1  # Linux: end the worker with its parent

FATAL = "Terminating process because the JAX distributed service detected fatal errors"
AGAIN = "Start the job again: it continues from its newest checkpoint."


class JobError(UserError):
    """An environment that does not define the number of processes, or the id of this one."""


@dataclass(frozen=True)
class Job:
    """The view that one process has of a job of several processes."""

    processes: int
    process: int
    address: str | None = None  # of process 0, host:port; None where JAX finds it
    start: int = START_SECONDS  # seconds to wait for all processes

    @property
    def meeting_place(self) -> str:
        """The address of process 0, for messages."""
        return self.address or "the address JAX detected"


def join():
    """Join the other processes of this job, if there are any.

    Call it before anything that touches devices. The process that was started becomes the parent
    of the one that returns from here, and ends with its status.
    """
    job = find(os.environ)
    if job is None:
        return

    if WORKER not in os.environ:
        sys.exit(supervise(job))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if job.process:
        logging.getLogger().setLevel(logging.ERROR)  # process 0 logs for all

    # train() handles requests to stop by itself.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        job.address,
        job.processes,
        job.process,
        # JAX waits twice for this long: to connect, and for the other processes.
        initialization_timeout=max(1, job.start // 2),
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=HEARTBEAT_SECONDS,
    )


def find(environment: Mapping[str, str]) -> Job | None:
    """Return the job that this process belongs to, or None when it is alone.

    Raises JobError for settings that are incomplete or contradict each other.
    """
    start = _number(environment, "LCLM_JAX_START_SECONDS", START_SECONDS)
    given = [name for name in SETTINGS if environment.get(name)]
    if given and len(given) < len(SETTINGS):
        raise JobError(
            f"expected all of {', '.join(SETTINGS)} or none, got only {', '.join(given)}; "
            "set the others, too"
        )
    if given:
        job = Job(
            _number(environment, SETTINGS[1]),
            _number(environment, SETTINGS[2]),
            environment[SETTINGS[0]],
            start,
        )
        if not 0 <= job.process < job.processes:
            raise JobError(
                f"expected JAX_PROCESS_ID from 0 to {job.processes - 1} (JAX_NUM_PROCESSES - 1), "
                f"got {job.process}"
            )
        if not re.fullmatch(r".+:\d+", job.address or ""):
            raise JobError(f"expected JAX_COORDINATOR_ADDRESS as host:port, got {job.address!r}")
    else:
        cluster = _find_cluster()
        if cluster is None:
            return None
        job = Job(cluster.get_process_count(), cluster.get_process_id(), start=start)
    return job if job.processes > 1 else None


def find_address(job: Job) -> str:
    """Return the address of process 0, which is the same for all processes of a job.

    Where JAX finds it, this waits up to `job.start` seconds for the name to be known.
    """
    if job.address is not None:
        return job.address
    cluster = _find_cluster()
    assert cluster is not None
    return cluster.get_coordinator_address(job.start, None)


def _find_cluster() -> type[ClusterEnv] | None:
    """Return the cluster in which JAX would find the other processes."""
    present = (
        kind
        for kind in ClusterEnv._cluster_types
        if not kind.opt_in_only_method and kind.is_env_present()
    )
    return next(present, None)


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name) or str(default)
    if not re.fullmatch(r"\d+", text):
        raise JobError(f"expected {name} to be a number, got {text!r}")
    return int(text)


def supervise(job: Job) -> int:
    """Run this command again as the job's worker, and return the status to end with.

    Signals are passed on to the worker, and its output to this process's own.
    """
    command = [sys.executable, *sys.orig_argv[1:]]
    output: deque[bytes] = deque(maxlen=MAX_OUTPUT_LINES)
    # In a group of its own, or Ctrl-C would reach it twice.
    worker = subprocess.Popen(
        command, env={**os.environ, WORKER: "1"}, stderr=subprocess.PIPE, process_group=0
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: worker.send_signal(number))
    # A broken connection stops the worker, too; under nohup the signal is ignored.
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: worker.send_signal(signal.SIGTERM))

    assert worker.stderr is not None
    listener = threading.Thread(target=_pass_on, args=(worker.stderr, output), daemon=True)
    listener.start()
    status = worker.wait()
    listener.join(timeout=2)  # a child of the worker may keep the pipe open
    text = b"".join(output).decode(errors="replace")
    sys.stderr.write(last_word(job, status, text))
    sys.stderr.flush()
    return status if status >= 0 else 128 - status


def _pass_on(stream: BinaryIO, output: deque[bytes]):
    """Copy a worker's output to stderr, and its newest lines to `output`."""
    for line in stream:
        output.append(line)
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()


def last_word(job: Job, status: int, output: str) -> str:
    """Return the last line to print for a worker that ended with `status`, given its output.

    It is empty where the worker has reported everything itself.
    """
    if status in (0, 2, 130):
        return ""
    me = f"process {job.process} of {job.processes}"
    if "RegisterTask" in output and "DEADLINE_EXCEEDED" in output:
        return (
            f"error: {me} waited about {job.start} s at {job.meeting_place}, and not all of the "
            f"{job.processes} processes came. Start one with each JAX_PROCESS_ID from 0 to "
            f"{job.processes - 1} and the same JAX_COORDINATOR_ADDRESS, which all hosts must "
            "reach; where hosts start slowly, raise LCLM_JAX_START_SECONDS\n"
        )

    dead = dead_processes(output)
    if dead == [job.process]:
        return f"error: {me} failed, as it says above, and ended the job. {AGAIN}\n"
    if dead:
        who = "process " + " and process ".join(map(str, dead))
        return f"error: {me} ends because {who} died; the output of {who} says why. {AGAIN}\n"
    if status == -signal.SIGABRT:
        return f"error: {me} ends because the job's processes lost each other; see above. {AGAIN}\n"
    if status < 0:
        how = f"was killed by {signal.Signals(-status).name}"
    else:
        how = f"failed with status {status}"
    return f"error: {me} {how}; the others end within a minute. {AGAIN}\n"


def dead_processes(output: str) -> list[int]:
    """Return the processes that the runtime's last message calls dead, or the first to leave.

    The list is empty where the message names none.
    """
    message = output.rpartition(FATAL)[2] if FATAL in output else ""
    if listed := re.search(r"unhealthy \(stopped sending heartbeats\):\n((?:\d+\n)+)", message):
        return sorted(map(int, listed[1].split()))
    if named := re.search(
        r"Task (\d+) heartbeat timeout|first task at the barrier: (\d+)", message
    ):
        return [int(named[1] or named[2])]
    if "Failed to send RPC to coordination service" in message:
        return [0]  # process 0 runs the service
    return []
