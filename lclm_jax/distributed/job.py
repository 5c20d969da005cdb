"""The processes of a training job: how they find each other, and what is said when one of them dies.

On a TPU slice, in a JobSet and under SLURM JAX itself knows how many processes there are; elsewhere each gets

    JAX_COORDINATOR_ADDRESS=HOST:PORT   of process 0
    JAX_NUM_PROCESSES=N
    JAX_PROCESS_ID=0 ... N - 1

and with none of these a process is alone. LCLM_JAX_START_SECONDS is how long the first waits for the last to start.

When a process dies, JAX's runtime aborts all others from C++, where Python cannot say why. So each worker has a small parent,
which passes on what the worker writes, has the last word, and ends with the worker's status.
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
from jax._src.clusters import (
    ClusterEnv,  # the only place that knows whether jax.distributed would find a cluster
)

from lclm_jax.errors import UserError

HEARTBEAT = 30  # seconds without a sign of life after which a process is dead
START = 40  # seconds in which all processes must have started, unless LCLM_JAX_START_SECONDS says otherwise
SETTINGS = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
WORKER = "LCLM_JAX_WORKER"  # set by the parent
KEPT = 500  # lines of the worker's output in which the parent looks for who died
DIE_WITH_PARENT = 1  # Linux: PR_SET_PDEATHSIG

FATAL = "Terminating process because the JAX distributed service detected fatal errors"
AGAIN = "Start the job again: it continues from its newest checkpoint."


class JobError(UserError):
    """An environment that does not say how many processes a job has, or which of them this one is."""


@dataclass(frozen=True)
class Job:
    """One process's view of a job of several."""

    processes: int
    process: int
    address: str | None = None  # of process 0, host:port; None where JAX finds it
    start: int = START  # seconds

    @property
    def meeting_place(self) -> str:
        return self.address or "the address JAX detected"


def join():
    """Joins the other processes of this one's job, if there are any. Before anything that touches devices.

    The process that was started becomes the parent of the one that returns from here, and ends with its status.
    """
    job = find(os.environ)
    if job is None:
        return
    if WORKER not in os.environ:
        sys.exit(supervise(job))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    if job.process:
        logging.getLogger().setLevel(logging.ERROR)  # process 0 says what all would say
    jax.config.update("jax_enable_preemption_service", False)  # a stop request is train()'s to hear
    jax.distributed.initialize(
        job.address,
        job.processes,
        job.process,
        initialization_timeout=max(
            1, job.start // 2
        ),  # JAX waits so long twice: to connect, and for the others
        heartbeat_timeout_seconds=HEARTBEAT,
        shutdown_timeout_seconds=HEARTBEAT,
    )


def find(environment: Mapping[str, str]) -> Job | None:
    """The job this process belongs to; None when it is alone. Raises JobError on settings that contradict each other."""
    start = _number(environment, "LCLM_JAX_START_SECONDS", START)
    given = [name for name in SETTINGS if environment.get(name)]
    if given and len(given) < len(SETTINGS):
        raise JobError(
            f"expected all of {', '.join(SETTINGS)} or none, got only {', '.join(given)}; set the others, too"
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
                f"expected JAX_PROCESS_ID from 0 to {job.processes - 1} (JAX_NUM_PROCESSES - 1), got {job.process}"
            )
        if not re.fullmatch(r".+:\d+", job.address or ""):
            raise JobError(f"expected JAX_COORDINATOR_ADDRESS as host:port, got {job.address!r}")
    else:
        cluster = next(
            (
                one
                for one in ClusterEnv._cluster_types
                if not one.opt_in_only_method and one.is_env_present()
            ),
            None,
        )
        if cluster is None:
            return None
        job = Job(cluster.get_process_count(), cluster.get_process_id(), start=start)
    return job if job.processes > 1 else None


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name) or str(default)
    if not re.fullmatch(r"\d+", text):
        raise JobError(f"expected {name} to be a number, got {text!r}")
    return int(text)


def supervise(job: Job) -> int:
    """Runs this very command as the job's worker; passes signals and output on. Returns the status to end with."""
    command = [sys.executable, *sys.orig_argv[1:]]
    said: deque[bytes] = deque(maxlen=KEPT)
    # In a group of its own, or Ctrl-C would reach it twice.
    worker = subprocess.Popen(
        command, env={**os.environ, WORKER: "1"}, stderr=subprocess.PIPE, process_group=0
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: worker.send_signal(number))
    if (
        signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    ):  # a connection that broke; not under nohup
        signal.signal(signal.SIGHUP, lambda *_: worker.send_signal(signal.SIGTERM))
    assert worker.stderr is not None
    listener = threading.Thread(target=_pass_on, args=(worker.stderr, said), daemon=True)
    listener.start()
    status = worker.wait()
    listener.join(timeout=2)  # a child of the worker may still hold its end
    sys.stderr.write(last_word(job, status, b"".join(said).decode(errors="replace")))
    sys.stderr.flush()
    return status if status >= 0 else 128 - status


def _pass_on(output: BinaryIO, said: deque[bytes]):
    for line in output:
        said.append(line)
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()


def last_word(job: Job, status: int, said: str) -> str:
    """What a person should read last of a worker that ended with `status`, given what it wrote; nothing where it said it all."""
    if status in (0, 2, 130):
        return ""
    me = f"process {job.process} of {job.processes}"
    if "RegisterTask" in said and "DEADLINE_EXCEEDED" in said:
        return (
            f"error: {me} waited about {job.start} s at {job.meeting_place}, and not all of the {job.processes} processes came. "
            f"Start one with each JAX_PROCESS_ID from 0 to {job.processes - 1} and the same JAX_COORDINATOR_ADDRESS, which "
            "all hosts must reach; where hosts start slowly, raise LCLM_JAX_START_SECONDS\n"
        )
    dead = dead_processes(said)
    if dead == [job.process]:
        return f"error: {me} failed, as it says above, and ended the job. {AGAIN}\n"
    if dead:
        who = "process " + " and process ".join(map(str, dead))
        return f"error: {me} ends because {who} died; the output of {who} says why. {AGAIN}\n"
    if status == -signal.SIGABRT:
        return f"error: {me} ends because the job's processes lost each other; see above. {AGAIN}\n"
    how = (
        f"was killed by {signal.Signals(-status).name}"
        if status < 0
        else f"failed with status {status}"
    )
    return f"error: {me} {how}; the others end within a minute. {AGAIN}\n"


def dead_processes(said: str) -> list[int]:
    """The processes that the runtime's last message calls dead, or first to leave; none when it names none."""
    message = said.rpartition(FATAL)[2] if FATAL in said else ""
    if listed := re.search(r"unhealthy \(stopped sending heartbeats\):\n((?:\d+\n)+)", message):
        return sorted(map(int, listed[1].split()))
    if named := re.search(
        r"Task (\d+) heartbeat timeout|first task at the barrier: (\d+)", message
    ):
        return [int(named[1] or named[2])]
    if "Failed to send RPC to coordination service" in message:
        return [0]  # which runs the service
    return []
