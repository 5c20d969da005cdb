"""Compiles the published recipe for common slices and reports figures that have grown.

    python -m launch.bench.capacity

Each program is a `launch.capacity` command of its own; finished ones (DIRECTORY/NAME.json) are
reused. Memory, FLOPs or bytes that grew by more than --growth over tests/data/capacity.json are an
error; --accept writes the new figures there, and docs/capacity.md with its pictures.
"""

import json
import logging
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from configs.lclm_0p6b_4b_16x import config as published
from lclm_jax.capacity.measure import Figures
from lclm_jax.cli import make_parser, path, run, setting
from lclm_jax.config.settings import NotNegative
from lclm_jax.costs.chips import parse_slice
from lclm_jax.errors import UserError
from lclm_jax.files.atomic import unfinished_file
from lclm_jax.files.reading import read_json
from lclm_jax.progress import track
from lclm_jax.reports.capacity import write_summary

CONFIG = "configs/lclm_0p6b_4b_16x.py"
DOCS = Path("docs")
BASELINE = Path("tests/data/capacity.json")
WATCHED_FIGURES = ("peak_bytes", "temp_bytes", "matmul_flops", "moved_bytes", "collective_bytes")
SLACK_BYTES = 16 * 2**20  # growth that is allowed whatever the figure
CONTEXTS = [2**power for power in range(12, 21, 2)]
# Copies of the model (mesh.data), by slice.
MODEL_COPIES = {
    "v5p:1x1x1": 1,
    "v5p:2x2x2": 1,
    "v5p:4x4x4": 1,
    "v5p:8x8x8": 1,
    "v5p:16x16x16": 16,
}
ROWS_PER_CHIP = 4


class GrownError(UserError):
    """Figures that exceed those in tests/data/capacity.json."""


@dataclass(frozen=True)
class CapacityRun:
    """One run of `launch.capacity`."""

    name: str
    arguments: tuple[str, ...]
    topic: str  # section of the report

    @property
    def gpu(self) -> bool:
        """True if the slice is one of GPUs."""
        return any(argument.startswith("h") for argument in self.arguments)


def capacity_runs() -> list[CapacityRun]:
    """Return all runs of the report, the most expensive last."""
    serving = [
        *(("v6e:1x1", job, 16) for job in ("compress", "prefill", "decode")),
        ("v6e:1x1", "decode", 8),
        ("v6e:1x1", "decode", 4),
        ("v6e:2x2", "decode", 4),
        ("v5e:1x1", "decode", 16),
        ("v5e:2x2", "prefill", 16),
        ("v5e:2x2", "decode", 16),
        ("v5p:1x1x1", "prefill", 16),
        ("v5p:1x1x1", "decode", 16),
        *(("h100:1", job, 16) for job in ("compress", "prefill")),
        ("h100:1", "decode", 16),
    ]
    runs = []
    for target, job, ratio in serving:
        arguments = (
            "--job",
            job,
            "--context",
            str(2**20),
            *settings(f"model.compression.ratio={ratio}"),
        )
        runs.append(CapacityRun(f"{job}-{ratio}x-{target}", (target, *arguments), "serving"))
    runs += [
        CapacityRun(
            f"decode-{context}",
            ("v6e:1x1", "--job", "decode", "--context", str(context)),
            "contexts",
        )
        for context in CONTEXTS
    ]
    half = settings("data.batch_rows=128", "data.row_windows=128")
    training = {
        "v5p:4x4x4": ("v5p:4x4x4",),
        "v5p:4x4x4-half-latents": ("v5p:4x4x4", *half),
        "2-slices-v5p:4x4x4": ("v5p:4x4x4", "--slices", "2", *settings("mesh.data=2")),
        "v5e:16x16": ("v5e:16x16",),
        "v6e:8x8": ("v6e:8x8",),
        "h100:8": ("h100:8", *settings("data.batch_rows=8")),
        "h100:8-half-latents": ("h100:8", *settings("data.batch_rows=8", "data.row_windows=128")),
    }
    runs += [
        CapacityRun(f"train-{name}", arguments, "training") for name, arguments in training.items()
    ]
    for target, copies in MODEL_COPIES.items():
        rows = ROWS_PER_CHIP * parse_slice(target).chips
        changed = [f"data.batch_rows={rows}", *([f"mesh.data={copies}"] if copies > 1 else [])]
        runs.append(
            CapacityRun(f"train-{rows}-rows-{target}", (target, *settings(*changed)), "chips")
        )
    return runs


def settings(*assignments: str) -> tuple[str, ...]:
    """Return `--set` arguments for these assignments."""
    return tuple(part for assignment in assignments for part in ("--set", assignment))


def main():
    parser = make_parser(__doc__)
    parser.add_argument(
        "--directory",
        type=path,
        default=Path("runs/capacity"),
        help="for finished runs (default: %(default)s)",
    )
    parser.add_argument(
        "--gpu-python",
        default=".gpu/bin/python",
        help="Python of an environment with jax's CUDA plugin (default: %(default)s)",
    )
    parser.add_argument(
        "--growth",
        type=setting(NotNegative),
        default=0.02,
        help="allowed growth, as a share (default: %(default)s)",
    )
    parser.add_argument(
        "--accept",
        action="store_true",
        help="make these figures the baseline and rewrite docs/capacity.md",
    )
    parser.add_argument("--only", help="only runs whose name contains this; writes nothing")
    arguments = parser.parse_args()
    chosen = [item for item in capacity_runs() if (arguments.only or "") in item.name]
    figures = {}
    for item in track(chosen, "compiling", len(chosen)):
        if item.gpu and not Path(arguments.gpu_python).exists():
            logging.warning(
                "%s is skipped: no %s; run make .gpu/installed", item.name, arguments.gpu_python
            )
            continue
        python = arguments.gpu_python if item.gpu else sys.executable
        figures[item.name] = measure(item, arguments.directory, python)
    before = read_json(BASELINE) if BASELINE.exists() else {}
    grown = find_growth(before, figures, arguments.growth)
    if arguments.accept and not arguments.only:
        accept(figures)
    elif grown:
        raise GrownError(
            "figures exceed tests/data/capacity.json; fix the cause or pass --accept:\n  "
            + "\n  ".join(grown)
        )


def measure(item: CapacityRun, directory: Path, python: str) -> Figures:
    """Return the figures of a run, from its file if it has finished before."""
    file = directory / f"{item.name}.json"
    if not file.exists():
        directory.mkdir(parents=True, exist_ok=True)
        log, environment = file.with_suffix(".log"), os.environ | {"JAX_PLATFORMS": "cpu"}
        with unfinished_file(file) as unfinished:
            command = [python, "-m", "launch.capacity", "--json", str(unfinished)]
            command += ["--config", CONFIG, "--slice", *item.arguments]
            with log.open("w", encoding="utf-8") as output:
                status = subprocess.run(
                    command, stdout=output, stderr=output, env=environment
                ).returncode
            if status not in (0, 3):
                raise UserError(f"{shlex.join(command)} ended with status {status}; see {log}")
    return read_json(file)


def find_growth(before: dict[str, Figures], after: dict[str, Figures], growth: float) -> list[str]:
    """Return a line for every figure that grew beyond the allowed share."""
    lines = []
    for name in before.keys() & after.keys():
        for key in WATCHED_FIGURES:
            old, new = before[name].get(key), after[name].get(key)
            if old is not None and new is not None and new > old * (1 + growth) + SLACK_BYTES:
                lines.append(f"{name}: {key} {new:.4g}, was {old:.4g}")
        if before[name]["fits"] and not after[name]["fits"]:
            lines.append(f"{name} no longer fits")
    return lines


def accept(figures: dict[str, Figures]):
    """Make these figures the baseline, and write the report on them."""
    BASELINE.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    topics: dict[str, list[tuple[str, Figures]]] = {}
    for item in capacity_runs():
        if item.name in figures:
            result = shlex.join(item.arguments), figures[item.name]
            topics.setdefault(item.topic, []).append(result)
    write_summary(DOCS, topics, published().model)


if __name__ == "__main__":
    run(main, cache=False)
