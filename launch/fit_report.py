"""Fits the published recipe on the slices people rent, and says where a figure has grown: python -m launch.fit_report

Each run is a `launch.fit` command of its own; one that is done (DIRECTORY/NAME.json) is not done again. Compared with the
figures in docs/fit.json, memory, products or bytes that grew by more than --growth end with exit status 1; --accept writes the
new ones there, docs/fit.md and its picture.
"""

import argparse
import json
import logging
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.lclm_0p6b_4b import config as published
from lclm_jax import plots
from lclm_jax.command import run
from lclm_jax.cost import compressed_cost, uncompressed_cost
from lclm_jax.errors import UserError
from lclm_jax.fit.measure import Figures
from lclm_jax.fit.page import GIB, NOTE
from lclm_jax.hardware import parse_slice
from lclm_jax.progress import track

CONFIG = "configs/lclm_0p6b_4b.py"
DOCS = Path("docs")
WATCHED = ("peak_bytes", "temp_bytes", "matmul_flops", "collective_bytes")
SLACK = 16 * 2**20  # bytes a figure may grow by whatever its size
CONTEXTS = [2**power for power in range(12, 21, 2)]
PODS = ("v5p:1x1x1", "v5p:2x2x2", "v5p:4x4x4", "v5p:8x8x8", "v5p:16x16x16")
ROWS_OF_A_CHIP = 4


class GrownError(UserError):
    """Figures that are worse than those in docs/fit.json."""


@dataclass(frozen=True)
class Fitting:
    """One run of `launch.fit`."""

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
        ("h100:1", "prefill", 16),
        ("h100:1", "decode", 16),
    ]
    found = []
    for where, job, ratio in serving:
        asked = ("--job", job, "--context", str(2**20), *settings(f"model.compression.ratio={ratio}"))
        found.append(Fitting(f"{job}-{ratio}x-{where}", (where, *asked), "serving"))
    found += [
        Fitting(f"decode-{context}", ("v6e:1x1", "--job", "decode", "--context", str(context)), "contexts")
        for context in CONTEXTS
    ]
    half = settings("data.rows=128", "data.windows=128")
    training = {
        "v5p:4x4x4": ("v5p:4x4x4",),
        "v5p:4x4x4-half-latents": ("v5p:4x4x4", *half),
        "v5e:16x16": ("v5e:16x16",),
        "v6e:8x8": ("v6e:8x8",),
        "h100:8": ("h100:8", *settings("data.rows=8")),
        "h100:8-half-latents": ("h100:8", *settings("data.rows=8", "data.windows=128")),
    }
    found += [Fitting(f"train-{name}", arguments, "training") for name, arguments in training.items()]
    for where in PODS:
        rows = ROWS_OF_A_CHIP * parse_slice(where).chips
        found.append(Fitting(f"train-{rows}-rows-{where}", (where, *settings(f"data.rows={rows}")), "chips"))
    return found


def settings(*assignments: str) -> tuple[str, ...]:
    return tuple(part for one in assignments for part in ("--set", one))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("runs/fit"), help="of finished runs (default: %(default)s)")
    parser.add_argument(
        "--gpu-python", default=".gpu/bin/python", help="of an environment with jax's CUDA plugin (default: %(default)s)"
    )
    parser.add_argument("--growth", type=float, default=0.02, help="that is let pass, as a share (default: %(default)s)")
    parser.add_argument("--accept", action="store_true", help="make these figures the ones in docs/")
    parser.add_argument("--only", help="run only those whose name has this in it, and write nothing")
    arguments = parser.parse_args()
    chosen = [one for one in fittings() if not arguments.only or arguments.only in one.name]
    figures = {}
    for one in track(chosen, "fitting", len(chosen)):
        if one.gpu and not Path(arguments.gpu_python).exists():
            logging.warning("%s is left out: no %s; make .gpu/installed", one.name, arguments.gpu_python)
            continue
        figures[one.name] = fit(one, arguments.directory, arguments.gpu_python if one.gpu else sys.executable)
    before = DOCS / "fit.json"
    grown = compare(json.loads(before.read_text()) if before.exists() else {}, figures, arguments.growth)
    if arguments.accept and not arguments.only:
        write(figures)
    elif grown:
        raise GrownError("worse than docs/fit.json; mend it, or say --accept:\n  " + "\n  ".join(grown))


def fit(one: Fitting, directory: Path, python: str) -> Figures:
    """The figures of a run, made unless they are there."""
    found = directory / f"{one.name}.json"
    if not found.exists():
        directory.mkdir(parents=True, exist_ok=True)
        unfinished, log = found.with_suffix(".partial"), found.with_suffix(".log")
        command = [python, "-m", "launch.fit", "--json", str(unfinished), *told(one)]
        with log.open("w") as output:
            status = subprocess.run(command, stdout=output, stderr=output, env=os.environ | {"JAX_PLATFORMS": "cpu"}).returncode
        if status not in (0, 3):
            raise UserError(f"{shlex.join(command)} ended with status {status}; see {log}")
        unfinished.rename(found)
    return json.loads(found.read_text())


def told(one: Fitting) -> list[str]:
    """Arguments of `launch.fit`."""
    return ["--config", CONFIG, "--slice", *one.arguments]


def compare(before: dict[str, Figures], after: dict[str, Figures], growth: float) -> list[str]:
    """What has grown, a line each."""
    lines = []
    for name in before.keys() & after.keys():
        for key in WATCHED:
            old, new = before[name][key], after[name][key]
            if old is not None and new is not None and new > old * (1 + growth) + SLACK:
                lines.append(f"{name}: {key} {new:.4g}, was {old:.4g}")
        if before[name]["fits"] and not after[name]["fits"]:
            lines.append(f"{name} does not fit any more")
    return lines


def write(figures: dict[str, Figures]):
    """docs/fit.json, fit.md and the pictures of growth."""
    kept = {name: {key: value for key, value in one.items() if key != "collectives"} for name, one in figures.items()}
    (DOCS / "fit.json").write_text(json.dumps(kept, indent=1) + "\n")
    parts = {
        theme: [one for one in fittings() if one.theme == theme and one.name in figures] for theme in ("training", "serving")
    }
    contexts, chips = contexts_growth(figures), chips_growth(figures)
    plots.plot_growth(contexts, "context, tokens", "GiB of a chip").savefig(DOCS / "fit_contexts.png", dpi=140)
    plots.plot_growth(chips, "chips", "GiB of a chip").savefig(DOCS / "fit_chips.png", dpi=140)
    text = PAGE.format(
        note=NOTE,
        compilers="; ".join(sorted({one["compiler"] for one in figures.values()})),
        training=markdown([training_row(one, figures[one.name]) for one in parts["training"]]),
        serving=markdown([serving_row(one, figures[one.name]) for one in parts["serving"]]),
        contexts=markdown(growth_rows(contexts)),
        chips=markdown(growth_rows(chips)),
        rows=ROWS_OF_A_CHIP,
    )
    (DOCS / "fit.md").write_text(text)


def training_row(one: Fitting, figures: Figures) -> dict[str, str]:
    told_, sent = figures["estimate"], figures["collective_bytes"]
    return {
        "command: `python -m launch.fit --config configs/lclm_0p6b_4b.py --slice`": f"`{shlex.join(one.arguments)}`",
        "fits": "yes" if figures["fits"] else "**no**",
        "arguments, temporaries, peak of HBM (GiB)": memory(figures),
        "products / model's": f"{figures['matmul_flops'] / figures['model_flops']:.3f}",
        "sent (GiB)": "–" if sent is None else f"{sent / GIB:.1f}",
        "/ FSDP budget": "–" if sent is None else f"{sent / figures['fsdp_budget_bytes']:.2f}",
        "sent in f32": "–"
        if sent is None
        else f"{sum(c['bytes'] for c in figures['collectives'] if c['type'] == 'f32') / GIB:.3f}",
        "step at 40 % MFU": f"{told_['step_seconds']:.1f} s",
        "stage: days, chip-hours": f"{told_['stage_days']:.1f}, {told_['stage_chip_hours']:,.0f}",
        "compiled in": f"{figures['compile_seconds']:.0f} s",
    }


def serving_row(one: Fitting, figures: Figures) -> dict[str, str]:
    low, high = figures["estimate"]["call_seconds"]
    return {
        "command: `python -m launch.fit --config configs/lclm_0p6b_4b.py --slice`": f"`{shlex.join(one.arguments)}`",
        "fits": "yes" if figures["fits"] else "**no**",
        "arguments, temporaries, peak of HBM (GiB)": memory(figures),
        "a call at peak speeds": f"{1e3 * low:.3g} to {1e3 * high:.3g} ms" if figures["fits"] else "–",
        "compiled in": f"{figures['compile_seconds']:.0f} s",
    }


def memory(figures: Figures) -> str:
    parts = " / ".join(f"{figures[f'{name}_bytes'] / GIB:.2f}" for name in ("argument", "temp", "peak"))
    return f"{parts} of {figures['hbm_bytes'] / GIB:.1f}"


def contexts_growth(figures: dict[str, Figures]) -> dict[str, dict[int, float]]:
    """GiB over the length of a context: what the compiler says of decoding, and caches counted from shapes."""
    model = published().model
    return {
        "decoding after latents, peak (compiled, v6e:1x1)": {
            context: figures[f"decode-{context}"]["peak_bytes"] / GIB for context in CONTEXTS if f"decode-{context}" in figures
        },
        "KV cache of latents (counted)": {context: compressed_cost(context, model).cache_bytes / GIB for context in CONTEXTS},
        "KV cache of the text (counted)": {context: uncompressed_cost(context, model).cache_bytes / GIB for context in CONTEXTS},
    }


def chips_growth(figures: dict[str, Figures]) -> dict[str, dict[int, float]]:
    """GiB of a chip over chips of a v5p, each with the same rows."""
    found = {one["chips"]: one for name, one in figures.items() if "-rows-" in name}
    return {
        "peak memory": {chips: one["peak_bytes"] / GIB for chips, one in found.items()},
        "arguments": {chips: one["argument_bytes"] / GIB for chips, one in found.items()},
        "sent in a step": {chips: one["collective_bytes"] / GIB for chips, one in found.items() if one["collective_bytes"]},
    }


def growth_rows(lines: dict[str, dict[int, float]]) -> list[dict[str, str]]:
    points = sorted({x for line in lines.values() for x in line})
    return [{"": f"{x:,}", **{name: f"{line[x]:.2f}" if x in line else "–" for name, line in lines.items()}} for x in points]


def markdown(rows: list[dict[str, Any]]) -> str:
    head = "| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0])
    return "\n".join([head, *("| " + " | ".join(map(str, row.values())) + " |" for row in rows)])


PAGE = """# Does it fit?

Made by `make fit-report`, which runs the commands below ({compilers}). **{note}** Peak is the larger of the compiler's
and what is handed in and out. Products are matrix products, attention excluded from both sides; bytes sent are those of one chip
in a step, each collective counted by the larger of its operand and its result; the FSDP budget is 6 bytes a parameter.

## Training, the stage that trains everything on the pre-training mix

{training}

A row is 16,384 decoder positions and 14 encoder windows of 1,024 tokens, as the recipe's token counts have it; with 128
windows half of the positions are latents. Days and chip-hours are of the stage's own number of steps.

## Serving a million tokens

{serving}

## As the context grows

![Memory over context length](fit_contexts.png)

{contexts}

GiB. The decoder's and encoder's weights are part of the peak, the caches are by themselves.

## As the slice grows

![Memory and bytes over chips](fit_chips.png)

{chips}

GiB of a chip of a v5p, {rows} rows each.
"""


if __name__ == "__main__":
    run(main)
