"""Compiles the published recipe for the slices people rent and names figures that have grown.

    python -m launch.bench.capacity

Each program is a `launch.capacity` command of its own; finished ones (DIRECTORY/NAME.json) are
reused. Memory, products or bytes that grew by more than --growth over tests/data/capacity.json end
with exit status 1; --accept writes the new figures there, docs/capacity.md and its picture.
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
from lclm_jax.reports.capacity_table import write_report

CONFIG = "configs/lclm_0p6b_4b_16x.py"
DOCS = Path("docs")
BASELINE = Path("tests/data/capacity.json")
WATCHED = ("peak_bytes", "temp_bytes", "matmul_flops", "moved_bytes", "collective_bytes")
SLACK = 16 * 2**20  # bytes a figure may grow by whatever its size
CONTEXTS = [2**power for power in range(12, 21, 2)]
PODS = {
    "v5p:1x1x1": 1,
    "v5p:2x2x2": 1,
    "v5p:4x4x4": 1,
    "v5p:8x8x8": 1,
    "v5p:16x16x16": 16,
}  # copies of the model
ROWS_OF_A_CHIP = 4


class GrownError(UserError):
    """Figures that are worse than those in tests/data/capacity.json."""


@dataclass(frozen=True)
class Fitting:
    """One run of `launch.capacity`."""

    name: str
    arguments: tuple[str, ...]
    theme: str  # section of the report

    @property
    def gpu(self) -> bool:
        return any(one.startswith("h") for one in self.arguments)


def fittings() -> list[Fitting]:
    """Everything in the report, the dearest last."""
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
    found = []
    for where, job, ratio in serving:
        asked = (
            "--job",
            job,
            "--context",
            str(2**20),
            *settings(f"model.compression.ratio={ratio}"),
        )
        found.append(Fitting(f"{job}-{ratio}x-{where}", (where, *asked), "serving"))
    found += [
        Fitting(
            f"decode-{context}",
            ("v6e:1x1", "--job", "decode", "--context", str(context)),
            "contexts",
        )
        for context in CONTEXTS
    ]
    half = settings("data.rows=128", "data.windows=128")
    training = {
        "v5p:4x4x4": ("v5p:4x4x4",),
        "v5p:4x4x4-half-latents": ("v5p:4x4x4", *half),
        "2-slices-v5p:4x4x4": ("v5p:4x4x4", "--slices", "2", *settings("mesh.data=2")),
        "v5e:16x16": ("v5e:16x16",),
        "v6e:8x8": ("v6e:8x8",),
        "h100:8": ("h100:8", *settings("data.rows=8")),
        "h100:8-half-latents": ("h100:8", *settings("data.rows=8", "data.windows=128")),
    }
    found += [
        Fitting(f"train-{name}", arguments, "training") for name, arguments in training.items()
    ]
    for where, copies in PODS.items():
        rows = ROWS_OF_A_CHIP * parse_slice(where).chips
        changed = [f"data.rows={rows}", *([f"mesh.data={copies}"] if copies > 1 else [])]
        found.append(Fitting(f"train-{rows}-rows-{where}", (where, *settings(*changed)), "chips"))
    return found


def settings(*assignments: str) -> tuple[str, ...]:
    return tuple(part for one in assignments for part in ("--set", one))


def main():
    parser = make_parser(__doc__)
    parser.add_argument(
        "--directory",
        type=path,
        default=Path("runs/capacity"),
        help="of finished runs (default: %(default)s)",
    )
    parser.add_argument(
        "--gpu-python",
        default=".gpu/bin/python",
        help="of an environment with jax's CUDA plugin (default: %(default)s)",
    )
    parser.add_argument(
        "--growth",
        type=setting(NotNegative),
        default=0.02,
        help="that is let pass, as a share (default: %(default)s)",
    )
    parser.add_argument(
        "--accept",
        action="store_true",
        help="make these figures the baseline and rewrite docs/capacity.md",
    )
    parser.add_argument(
        "--only", help="run only those whose name has this in it, and write nothing"
    )
    arguments = parser.parse_args()
    chosen = [one for one in fittings() if not arguments.only or arguments.only in one.name]
    figures = {}
    for one in track(chosen, "fitting", len(chosen)):
        if one.gpu and not Path(arguments.gpu_python).exists():
            logging.warning(
                "%s is left out: no %s; make .gpu/installed", one.name, arguments.gpu_python
            )
            continue
        figures[one.name] = fit(
            one, arguments.directory, arguments.gpu_python if one.gpu else sys.executable
        )
    before = read_json(BASELINE) if BASELINE.exists() else {}
    grown = compare(before, figures, arguments.growth)
    if arguments.accept and not arguments.only:
        accept(figures)
    elif grown:
        raise GrownError(
            "worse than tests/data/capacity.json; mend it, or say --accept:\n  "
            + "\n  ".join(grown)
        )


def fit(one: Fitting, directory: Path, python: str) -> Figures:
    """The figures of a run, made unless they are there."""
    found = directory / f"{one.name}.json"
    if not found.exists():
        directory.mkdir(parents=True, exist_ok=True)
        log, environment = found.with_suffix(".log"), os.environ | {"JAX_PLATFORMS": "cpu"}
        with unfinished_file(found) as unfinished:
            command = [python, "-m", "launch.capacity", "--json", str(unfinished), *told(one)]
            with log.open("w", encoding="utf-8") as output:
                status = subprocess.run(
                    command, stdout=output, stderr=output, env=environment
                ).returncode
            if status not in (0, 3):
                raise UserError(f"{shlex.join(command)} ended with status {status}; see {log}")
    return read_json(found)


def told(one: Fitting) -> list[str]:
    """Arguments of `launch.capacity`."""
    return ["--config", CONFIG, "--slice", *one.arguments]


def compare(before: dict[str, Figures], after: dict[str, Figures], growth: float) -> list[str]:
    """What has grown, a line each."""
    lines = []
    for name in before.keys() & after.keys():
        for key in WATCHED:
            old, new = before[name].get(key), after[name].get(key)
            if old is not None and new is not None and new > old * (1 + growth) + SLACK:
                lines.append(f"{name}: {key} {new:.4g}, was {old:.4g}")
        if before[name]["fits"] and not after[name]["fits"]:
            lines.append(f"{name} does not fit any more")
    return lines


def accept(figures: dict[str, Figures]):
    """Makes these the figures in docs/."""
    BASELINE.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    found = [
        (one.theme, shlex.join(one.arguments), figures[one.name])
        for one in fittings()
        if one.name in figures
    ]
    themes = {
        theme: [(command, told) for its, command, told in found if its == theme]
        for theme, _, _ in found
    }
    write_report(DOCS, themes, published().model)


if __name__ == "__main__":
    run(main, cache=False)
