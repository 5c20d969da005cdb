"""The process that runs the parts one after the other, each within its share of the time.

It uses no device itself. A part that crashes, hangs or runs out of memory costs only its own time.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from launch.bench.accelerator.page import write_page
from launch.bench.accelerator.parts import Part, choose_parts
from launch.bench.accelerator.record import read_results
from launch.bench.accelerator.report import report
from launch.bench.accelerator.sizes import published, tiny
from launch.bench.accelerator.summary import write_summary
from lclm_jax.files.atomic import write_whole
from lclm_jax.version import REPOSITORY

RESERVE_SECONDS = 8.0  # at the end, to write the page
MIN_PART_SECONDS = 4.0
GRACE_SECONDS = 3.0  # between SIGTERM and SIGKILL
# Share of the device's memory that JAX allocates at start; peak_bytes_in_use counts within it.
MEMORY_FRACTION = "0.95"


@dataclass(frozen=True)
class Plan:
    """The command's arguments, and when it started."""

    directory: Path
    minutes: float
    sections: tuple[str, ...]
    tiny: bool
    platform: str  # cpu, gpu or tpu
    started: float

    @property
    def end(self) -> float:
        """Time by which the last part must have ended."""
        return self.started + 60 * self.minutes - RESERVE_SECONDS


class Ended(KeyboardInterrupt):
    """Signal that the command was asked to end."""


def find_platform() -> str:
    """Return gpu, tpu or cpu, without initialising a device."""
    asked = os.environ.get("JAX_PLATFORMS", "")
    if asked:
        first = asked.split(",")[0]
        return {"cuda": "gpu"}.get(first, first)
    if shutil.which("nvidia-smi") and (Path("/proc/driver/nvidia").exists() or visible_gpus()):
        return "gpu"
    accelerators = [*Path("/dev").glob("accel*"), *Path("/dev").glob("vfio/[0-9]*")]
    return "tpu" if accelerators else "cpu"


def visible_gpus() -> bool:
    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, encoding="utf-8", timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return "GPU" in done.stdout


def run_parts(plan: Plan):
    """Run every part that is not finished. Raises Ended when the command is asked to end.

    The process of the next part starts early: it imports its modules while the part before it
    measures, and waits for its deadline before it uses a device.
    """
    signal.signal(signal.SIGTERM, _end)
    check_directory(plan.directory, {"tiny": plan.tiny, "platform": plan.platform})
    cases = len((tiny() if plan.tiny else published()).cases)
    waiting = []
    for part in choose_parts(plan.sections, cases):
        if read_results(part.file(plan.directory))["finished"]:
            report(f"{part.name}: measured before", plan.started)
        else:
            waiting.append(part)
    following = start(plan, waiting[0]) if waiting else None
    try:
        while waiting:
            part, current = waiting.pop(0), following
            following = start(plan, waiting[0]) if waiting else None
            left = plan.end - time.time()
            if left < MIN_PART_SECONDS or current is None:
                report(f"{part.name}: no time left", plan.started)
                continue
            run_one(plan, part, current, allowance(part, waiting, left))
            write_page(plan.directory, write_summary(plan.directory), pictures=False)
    finally:
        if following is not None:
            end_group(following)


def allowance(part: Part, waiting: list[Part], left: float) -> float:
    """Return the seconds for a part: its share of the time left, relative to those that follow.

    >>> allowance(Part("a", 60), [Part("b", 40)], 50.0), allowance(Part("a", 60), [], 200.0)
    (30.0, 200.0)
    """
    return left * part.share / (part.share + sum(later.share for later in waiting))


def check_directory(directory: Path, asked: Mapping[str, object]):
    """Record what is measured in a directory.

    Raises ValueError if it holds measurements of other shapes or another device.
    """
    file = directory / "plan.json"
    if file.exists() and (kept := json.loads(file.read_text(encoding="utf-8"))) != asked:
        raise ValueError(
            f"expected {directory} to hold measurements of {asked}, it holds those of {kept}; "
            "set --out to another directory"
        )
    write_whole(file, json.dumps(asked))


def start(plan: Plan, part: Part) -> subprocess.Popen:
    """Start the process of a part, in its own process group; it waits for its deadline."""
    command = [sys.executable, "-m", "launch.bench.accelerator.section", part.name]
    command += ["--out", str(plan.directory), "--started", str(plan.started)]
    command += ["--tiny"] if plan.tiny else []
    file = log(plan, part)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as errors:
        return subprocess.Popen(
            command,
            env=environment(plan, part),
            stdin=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
            encoding="utf-8",
        )


def log(plan: Plan, part: Part) -> Path:
    """Return the file for the standard error of a part's process."""
    return plan.directory / "logs" / f"{part.name}.txt"


def run_one(plan: Plan, part: Part, process: subprocess.Popen, seconds: float):
    """Let a part begin, and end its process group when its time is over."""
    report(f"{part.name}: started, at most {seconds:.0f} s", plan.started)
    status, timed_out = 0, False
    try:
        process.communicate(f"{time.time() + seconds}\n", timeout=seconds)
        status = process.returncode
    except subprocess.TimeoutExpired:
        timed_out = True
    except BrokenPipeError:
        status = process.wait(GRACE_SECONDS)
    finally:
        end_group(process)
    if timed_out:
        note_end(plan, part, f"time limit of {seconds:.0f} s reached", kind="skipped")
    elif status:
        message = f"the process ended with status {status}:\n{tail(log(plan, part))}"
        note_end(plan, part, message)


def environment(plan: Plan, part: Part) -> dict[str, str]:
    """Return the environment of a part: devices, memory, and the shared compilation cache."""
    platforms = {"gpu": "cuda,cpu", "tpu": "tpu,cpu"}.get(plan.platform, "cpu")
    settings = {
        "JAX_PLATFORMS": "cpu" if part.on_cpu else platforms,
        "JAX_ENABLE_COMPILATION_CACHE": str(part.cached).lower(),
        "JAX_COMPILATION_CACHE_DIR": str((plan.directory / "programs").resolve()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "true",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings["PYTHONPATH"] = os.pathsep.join(paths)
    known = {key: value for key, value in os.environ.items() if "MEM_FRACTION" not in key}
    if plan.platform == "gpu":
        settings["XLA_CLIENT_MEM_FRACTION"] = MEMORY_FRACTION
    return known | settings


def note_end(plan: Plan, part: Part, text: str, kind: str = "errors"):
    """Write into a part's file why its process did not end normally."""
    report(f"{part.name}: {text.splitlines()[0]}", plan.started)
    results = read_results(part.file(plan.directory))
    results[kind]["the part itself"] = text
    write_whole(part.file(plan.directory), json.dumps(results, indent=1))


def tail(file: Path, lines: int = 40) -> str:
    return "\n".join(file.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def end_group(process: subprocess.Popen):
    """End a process and all processes in its group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)


def _end(*_):
    raise Ended("asked to end")
