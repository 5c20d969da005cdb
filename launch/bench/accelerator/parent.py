"""The process that runs the parts one after the other, each until its time is over.

It uses no device itself. A part that crashes, hangs or runs out of memory costs only its own time.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
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

RESERVE = 8.0  # seconds at the end for the page
SHORTEST = 4.0  # seconds below which no part is started
GRACE = 3.0  # seconds between asking a process to end and ending it
MEMORY = "0.95"  # of the device, taken at once: peak_bytes_in_use counts what is used of it


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
        """When the last part must have ended."""
        return self.started + 60 * self.minutes - RESERVE


class Ended(KeyboardInterrupt):
    """The command was asked to end."""


def find_platform() -> str:
    """Finds the kind of accelerator without initialising it: gpu, tpu or cpu."""
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
    """Every part that is not finished. Raises Ended when the command is asked to end.

    The process of the next part is started early: it reads its modules while the part before it
    measures, and waits to be told to begin before it touches a device.
    """
    signal.signal(signal.SIGTERM, _end)
    check_directory(plan)
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
            if left < SHORTEST or current is None:
                report(f"{part.name}: no time left", plan.started)
                continue
            run_one(plan, part, current, allowance(part, waiting, left))
            write_page(plan.directory, write_summary(plan.directory), pictures=False)
    finally:
        if following is not None:
            end_group(following)


def allowance(part: Part, waiting: list[Part], left: float) -> float:
    """Seconds for a part: what is left is divided among it and those that follow by their shares.

    Where there is more time than all need, only the last part gets more than its share.

    >>> allowance(Part("a", 60), [Part("b", 40)], 50.0), allowance(Part("a", 60), [], 200.0)
    (30.0, 200.0)
    """
    if not waiting:
        return left
    total = part.share + sum(one.share for one in waiting)
    return part.share * min(left / total, 1.5)


def check_directory(plan: Plan):
    """Raises ValueError where the directory holds measurements of other shapes or devices."""
    file, asked = plan.directory / "plan.json", {"tiny": plan.tiny, "platform": plan.platform}
    if file.exists() and (found := json.loads(file.read_text(encoding="utf-8"))) != asked:
        raise ValueError(
            f"expected {plan.directory} to hold measurements of {asked}, it holds some of {found}; "
            "set --out to another directory"
        )
    write_whole(file, json.dumps(asked))


def start(plan: Plan, part: Part) -> subprocess.Popen:
    """The process of a part, in a group of its own, that waits for its deadline."""
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
    """The file for the standard error of a part's process."""
    return plan.directory / "logs" / f"{part.name}.txt"


def run_one(plan: Plan, part: Part, process: subprocess.Popen, seconds: float):
    """Lets a part begin, and ends its process and all it has started when its time is over."""
    report(f"{part.name}: begins, {seconds:.0f} s at most", plan.started)
    status, timed_out = 0, False
    try:
        process.communicate(f"{time.time() + seconds}\n", timeout=seconds)
        status = process.returncode
    except subprocess.TimeoutExpired:
        timed_out = True
    except BrokenPipeError:
        status = process.wait(GRACE)
    finally:
        end_group(process)
    if timed_out:
        note_end(plan, part, f"its {seconds:.0f} s were over", kind="skipped")
    elif status:
        said = f"the process ended with status {status}:\n{tail(log(plan, part))}"
        note_end(plan, part, said)


def environment(plan: Plan, part: Part) -> dict[str, str]:
    """Environment of a part's process: devices, memory, and the program cache all parts share."""
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
        settings["XLA_CLIENT_MEM_FRACTION"] = MEMORY
    return known | settings


def note_end(plan: Plan, part: Part, text: str, kind: str = "errors"):
    """Writes into a part's file why it did not end by itself."""
    report(f"{part.name}: {text.splitlines()[0]}", plan.started)
    found = read_results(part.file(plan.directory))
    found[kind]["the part itself"] = text
    write_whole(part.file(plan.directory), json.dumps(found, indent=1))


def tail(file: Path, lines: int = 40) -> str:
    return "\n".join(file.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def end_group(process: subprocess.Popen):
    """Ends a process and all it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)


def _end(*_):
    raise Ended("asked to end")
