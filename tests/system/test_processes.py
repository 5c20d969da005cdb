"""Real processes on localhost: parallel results, shared data, stops, crashes and resumption."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from lclm_jax.config.values import to_dict
from lclm_jax.distributed.job import FATAL, Job, JobError, dead_processes, find, last_word
from lclm_jax.files.directories import locked
from lclm_jax.model.params import flatten
from lclm_jax.training.loop import train
from tests.support.gradients import assert_close, loss_and_gradients
from tests.support.paths import ROOT

PATIENCE = 300  # seconds for what takes a few on a quiet machine
# By number of processes: meshes that split heads and sequences, as those of the runs do not.
MESHES = {2: ((1, 1, 1, 2),), 4: ((1, 2, 2, 1),)}


def environment(process: int, processes: int, port: int, **more: str) -> dict[str, str]:
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    job = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": processes,
        "JAX_PROCESS_ID": process,
    }
    start = {
        "LCLM_JAX_START_SECONDS": "200",
        "PYTHONPATH": f"{ROOT}",
        "XLA_FLAGS": flags,
        "LCLM_JAX_CHECK_TYPES": "",
    }
    return os.environ | start | {name: str(value) for name, value in job.items()} | more


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@dataclass
class Ended:
    """The end of a process."""

    status: int
    stderr: str
    time: float  # seconds since the epoch


def run(processes: int, *arguments: object, **more: str) -> list[Ended]:
    """Start a command in several processes of one device each, and wait for all."""
    port = free_port()

    def run_process(process: int) -> Ended:
        given = environment(process, processes, port, **more)
        command = [
            sys.executable,
            *(str(argument).replace("{process}", str(process)) for argument in arguments),
        ]
        done = subprocess.run(
            command, cwd=ROOT, env=given, capture_output=True, encoding="utf-8", timeout=PATIENCE
        )
        return Ended(done.returncode, done.stderr, time.time())

    with ThreadPoolExecutor(processes) as pool:
        return list(pool.map(run_process, range(processes)))


def statuses(ended: list[Ended], *expected: int):
    assert [process.status for process in ended] == list(expected), "\n\n".join(
        process.stderr[-2000:] for process in ended
    )


@dataclass
class Runs:
    """A run that two processes began, four went on with, and one finished."""

    directory: Path
    stopped: list[Ended]  # two processes, of which one was asked to stop
    # Four processes, of which one was killed before it wrote its part of a checkpoint.
    killed: list[Ended]
    killed_at: float
    saved: list[int]  # the newest checkpoint before and after that
    finished: list[Ended]
    refused: list[Ended]  # two processes with another model
    apart: list[Ended]  # two processes with a directory each


def newest(directory: Path) -> int:
    return max(
        int(step.name) for step in (directory / "checkpoints").iterdir() if step.name.isdigit()
    )


@pytest.fixture(scope="module")
def written(config_once, tmp_path_factory) -> Path:
    """The config as a file, whatever the number of devices."""
    file = tmp_path_factory.mktemp("config") / "config.json"
    file.write_text(
        json.dumps(to_dict(replace(config_once, mesh=replace(config_once.mesh, fsdp=-1)))),
        encoding="utf-8",
    )
    return file


@pytest.fixture(scope="module", autouse=True)
def runs(written, tmp_path_factory):
    """Start `Runs` beside the first tests; `runs.result()` waits for it.

    It waits for heartbeats that do not come.
    """
    directory, programs = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("programs")
    command = [
        "-m",
        "launch.train",
        "--config",
        "tests/system/worker.py",
        "--set",
        f"run.directory={directory}",
    ]
    shared = {"TEST_CONFIG": str(written), "JAX_COMPILATION_CACHE_DIR": str(programs)}
    shared["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

    def all_of_them() -> Runs:
        stopped = run(2, *command, TEST_SIGNAL="1:adapter:3:SIGTERM", **shared)
        saved = [newest(directory)]
        killed = run(4, *command, "--set", "mesh.data=2", TEST_SIGNAL="2:all:2:SIGKILL", **shared)
        saved += [newest(directory)]
        finished = run(1, *command, **shared)
        refused = run(2, *command, "--set", "model.decoder.mlp=48", **shared)
        apart = run(2, *command, "--set", f"run.directory={programs}/" + "{process}", **shared)
        killed_at = float(written.with_suffix(".SIGKILL").read_text(encoding="utf-8"))
        return Runs(directory, stopped, killed, killed_at, saved, finished, refused, apart)

    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(all_of_them)


@pytest.fixture(scope="module")
def computed(written, noisy, tmp_path_factory):
    """A directory of what 2 and 4 processes computed on each of their meshes."""
    directory = tmp_path_factory.mktemp("computed")
    np.savez(directory / "params.npz", **flatten(noisy))
    for count, meshes in MESHES.items():
        given = [",".join(map(str, mesh)) for mesh in meshes]
        statuses(
            run(count, "tests/system/worker.py", written, directory, *given, LCLM_JAX_WORKER="1"),
            *[0] * count,
        )
    return directory


def test_loss_and_gradients_are_those_of_one_device(
    computed, config_once, noisy, one_batch, one_device, subtests
):
    expected = loss_and_gradients(config_once, noisy, one_batch, one_device)
    for mesh in (mesh for meshes in MESHES.values() for mesh in meshes):
        with subtests.test(mesh=mesh):
            gradients = dict(np.load(computed / f"{'-'.join(map(str, mesh))}.npz"))
            loss = gradients.pop("loss")
            assert gradients.keys() == expected[1].keys()
            assert_close((loss, gradients), expected)


def test_processes_together_read_every_row_once_and_share_what_they_split(computed, one_batch):
    for count, meshes in MESHES.items():
        for mesh in meshes:
            name = "-".join(map(str, mesh))
            rows = [np.load(computed / f"{name}.rows{process}.npz") for process in range(count)]
            for part in rows:
                np.testing.assert_array_equal(part["tokens"], one_batch.tokens[part["rows"]])
            times = np.bincount(np.concatenate([part["rows"] for part in rows]), minlength=8)
            assert times.tolist() == [mesh[2] * mesh[3]] * 8


def test_one_process_without_the_others_says_where_it_waited():
    port = free_port()
    given = environment(0, 2, port, LCLM_JAX_START_SECONDS="4", TEST_CONFIG="")
    command = [sys.executable, "-m", "launch.train", "--config", "tests/system/worker.py"]
    done = subprocess.run(
        command, cwd=ROOT, env=given, capture_output=True, encoding="utf-8", timeout=PATIENCE
    )
    assert done.returncode == 128 + signal.SIGABRT
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        f"error: process 0 of 2 waited about 4 s at 127.0.0.1:{port}, and not all of the 2 "
        "processes came"
    )
    assert "LCLM_JAX_START_SECONDS" in last


def log_of(directory) -> list[dict]:
    return [
        json.loads(line)
        for line in (directory / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def test_a_request_to_one_process_stops_all_at_one_step_with_a_checkpoint(runs):
    result = runs.result()
    statuses(result.stopped, 130, 130)
    messages = {process.stderr.splitlines()[-1] for process in result.stopped}
    (message,) = messages
    assert message.startswith(
        "stopped in stage adapter after step 4 of 4; saved, run again to continue"
    )
    assert result.saved[0] == 4


def test_a_checkpoint_that_one_process_did_not_write_is_none(runs):
    assert runs.result().saved[1] == 4


def test_a_killed_process_ends_the_job_within_a_minute_and_all_say_so(runs):
    result = runs.result()
    statuses(
        result.killed,
        *[
            128 + number
            for number in (signal.SIGABRT, signal.SIGABRT, signal.SIGKILL, signal.SIGABRT)
        ],
    )
    assert max(process.time for process in result.killed) - result.killed_at < 60
    for process, ended in enumerate(result.killed):
        last = ended.stderr.splitlines()[-1]
        if process == 2:
            assert last.startswith(
                "error: process 2 of 4 was killed by SIGKILL; the others end within a minute."
            )
        else:
            assert last.startswith(f"error: process {process} of 4 ends because process 2 died")
        assert last.endswith("Start the job again: it continues from its newest checkpoint.")


def test_two_then_four_then_one_process_train_as_one_undisturbed(
    runs, config, monkeypatch, one_device
):
    result = runs.result()
    statuses(result.finished, 0)
    monkeypatch.setattr("lclm_jax.training.run.make_mesh", lambda _: one_device)
    expected = log_of(train(config))
    lines = log_of(result.directory)
    steps = [(line["stage"], line["step"]) for line in lines]
    assert steps[:4] == [("adapter", step) for step in (1, 2, 3, 4)] and steps[-1] == ("all", 4)
    again = [step for step in steps if steps.count(step) > 1]
    assert len(set(again)) <= 3, steps  # what was lost with the killed process
    by_step = {(line["stage"], line["step"]): line for line in expected}
    assert set(steps) == by_step.keys()
    for line in lines:
        alone = by_step[line["stage"], line["step"]]
        assert line["trained_tokens"] == alone["trained_tokens"]  # the same data
        assert line["fill"] == pytest.approx(alone["fill"]) and line[
            "window_fill"
        ] == pytest.approx(alone["window_fill"])
        np.testing.assert_allclose(line["loss"], alone["loss"], rtol=1e-4)


def test_what_process_0_cannot_write_ends_all_with_its_error(runs):
    result = runs.result()
    statuses(result.refused, 2, 2)
    assert (
        "holds another model (model.json differs in decoder): decoder.mlp 64 -> 48"
        in result.refused[0].stderr
    )
    assert (
        result.refused[1].stderr.splitlines()[-1]
        == "error: process 0 failed to write the files of the model; its output says why"
    )


def test_a_second_job_on_a_directory_is_refused_in_all_its_processes(runs, written, tmp_path):
    runs.result()  # so that not everything runs at once
    command = ["-m", "launch.train", "--config", "tests/system/worker.py"]
    with locked(tmp_path):
        ended = run(2, *command, "--set", f"run.directory={tmp_path}", TEST_CONFIG=str(written))
    statuses(ended, 2, 2)
    assert f"{tmp_path} is being written by process {os.getpid()} on" in ended[0].stderr
    last = ended[1].stderr.splitlines()[-1]
    assert last == f"error: process 0 failed to lock {tmp_path}; its output says why"


def test_a_directory_that_is_not_shared_is_named(runs):
    apart = runs.result().apart
    statuses(apart, 2, 2)
    for process in apart:
        last = process.stderr.splitlines()[-1]
        assert re.fullmatch(
            r"error: process 1 does not see what process 0 writes to .*; "
            r"set run\.directory to one .*",
            last,
        )


def test_a_job_is_found_in_its_settings():
    given = {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
    assert find({}) is None
    assert find(given) == Job(4, 3, "host:1")
    assert find(given | {"LCLM_JAX_START_SECONDS": "600"}) == Job(4, 3, "host:1", 600)
    assert find(given | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"JAX_PROCESS_ID": ""},
            "or none, got only JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES; set the others, too",
        ),
        (
            {"JAX_PROCESS_ID": "4"},
            "expected JAX_PROCESS_ID from 0 to 3 .JAX_NUM_PROCESSES - 1., got 4",
        ),
        ({"JAX_NUM_PROCESSES": "four"}, "expected JAX_NUM_PROCESSES to be a number, got 'four'"),
        (
            {"JAX_COORDINATOR_ADDRESS": "host"},
            "expected JAX_COORDINATOR_ADDRESS as host:port, got 'host'",
        ),
    ],
)
def test_settings_that_contradict_each_other(change, message):
    given = {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
    with pytest.raises(JobError, match=message):
        find(given | change)


def test_slurm_is_found(monkeypatch):
    """JAX's own detection, from what srun sets."""
    given = {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "gpu[01-02]",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "0",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert find(os.environ) == Job(2, 1)


@pytest.mark.parametrize(
    ("output", "dead"),
    [
        (
            FATAL + "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n"
            "1\n12\nThe tasks",
            [1, 12],
        ),
        (
            FATAL + "INTERNAL: Barrier failed because: UNAVAILABLE: Task 2 heartbeat timeout. This",
            [2],
        ),
        (
            FATAL + "INTERNAL: Barrier timed out.\nThe first task at the barrier: 1. "
            "Some timed out task names:\n0",
            [1],
        ),
        (FATAL + "UNAVAILABLE: Failed to send RPC to coordination service. Either", [0]),
        ("Traceback: Task 3 heartbeat timeout", []),
        ("Segmentation fault", []),
    ],
)
def test_the_runtime_names_who_died(output, dead):
    assert dead_processes(output) == dead


@pytest.mark.parametrize(
    ("status", "output", "word"),
    [
        (0, "", ""),
        (2, "error: unknown setting", ""),
        (
            1,
            "Traceback",
            "error: process 1 of 4 failed with status 1; the others end within a minute.",
        ),
        (
            -6,
            FATAL + "first task at the barrier: 1.",
            "error: process 1 of 4 failed, as it says above, and ended the job.",
        ),
        (
            -6,
            FATAL + "first task at the barrier: 3.",
            "error: process 1 of 4 ends because process 3 died; the output of process 3",
        ),
    ],
)
def test_the_last_word(status, output, word):
    assert last_word(Job(4, 1, "host:1"), status, output).startswith(word)
