"""Measure how fast data are prepared and loaded, and how many cores are needed to feed a slice.

    python -m launch.bench.data DIRECTORY

Writes sample input, prepares both mixes of the paper with one process, suggests row budgets, and
times each step of loading a row. Times are CPU seconds, on which other load has little effect. The
rows that a slice needs are an estimate: its peak FLOPs times --mfu.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TypeVar, cast

from rich.table import Table

from configs.recipes import fine_tuning, pretraining
from lclm_jax.cli import add_config_arguments, make_parser, path, run, setting, show_table
from lclm_jax.config import Config, Recipe
from lclm_jax.config.settings import Size
from lclm_jax.costs.chips import Mfu, Slice, parse_slice
from lclm_jax.costs.work import training_flops
from lclm_jax.data.loading import PackedBatches, PackedIterator, PackedRow, assemble
from lclm_jax.data.loading.survey import open_prepared, pack_rows
from lclm_jax.data.prepare import prepare
from lclm_jax.data.records import Example
from lclm_jax.data.synthetic.samples import write_samples
from lclm_jax.data.text.find_tokenizer import find_tokenizer
from lclm_jax.experiment import load_experiment
from lclm_jax.progress import track

T = TypeVar("T")
ROUNDS = 5
STEPS = ("plan", "read", "assemble")
# Every host plans all rows of a batch; it reads and assembles only its own.
ON_EVERY_HOST = ("plan",)


@dataclass(frozen=True)
class Loading:
    """Cost of loading a packed row."""

    tokens: float  # per row, of both towers
    seconds: dict[str, list[float]]  # CPU seconds per row, by step, in every round


def main():
    parser = make_parser(__doc__)
    parser.add_argument("directory", type=path, help="new directory for input and prepared data")
    add_config_arguments(parser, default="configs/lclm_0p6b_4b_16x.py")
    parser.add_argument(
        "--slice",
        type=parse_slice,
        default="v5p:4x4x4",
        help="slice to feed (default: %(default)s)",
    )
    parser.add_argument(
        "--mfu",
        type=setting(Mfu),
        default=0.4,
        help="MFU the slice reaches (default: %(default)s)",
    )
    parser.add_argument(
        "--rows", type=setting(Size), default=64, help="rows per round (default: %(default)s)"
    )
    arguments = parser.parse_args()
    config = load_experiment(arguments.config, arguments.set).config
    if arguments.directory.exists():
        raise FileExistsError(
            f"{arguments.directory} exists; name a new directory or remove it first"
        )
    inputs = write_samples(arguments.directory / "input", track)
    for recipe in (pretraining.recipe(), fine_tuning.recipe()):
        bench(config, recipe, inputs, arguments.directory / recipe.name, arguments)


def bench(
    config: Config,
    recipe: Recipe,
    inputs: dict[str, list[str]],
    directory: Path,
    arguments: argparse.Namespace,
):
    own = {source.name: inputs[source.name] for source in recipe.sources}
    manifest, prepared = timed(
        lambda: prepare(recipe, own, directory, find_tokenizer(recipe.tokenizer), 1, track)
    )
    tokens = sum(sum(source["tokens"].values()) for source in manifest["sources"].values())
    data = open_prepared(config, directory)
    packing = pack_rows(data, 4 * arguments.rows, track)
    windows = packing["suggested_windows"]
    fills = packing["tried_windows"][str(windows)]
    data = replace(data, stage=replace(data.stage, row_windows=windows))
    loading = load_rows(PackedIterator(PackedBatches(data.mix_streams())), arguments.rows)
    sys.stdout.write(
        f"\n{recipe.name}: {tokens:,} tokens prepared at {tokens / prepared:,.0f} tokens "
        f"per second and core; rows of {config.data.row_positions} positions and {windows} windows "
        f"have {fills['positions_fill']:.1%} and {fills['windows_fill']:.1%} of them filled, "
        f"over {packing['rows']} rows\n"
    )
    needed = rows_needed(config, windows, arguments.slice, arguments.mfu)
    sys.stdout.write(
        f"estimate: {arguments.slice} at {arguments.mfu:.0%} MFU needs {needed:.2f} rows or "
        f"{needed * loading.tokens:,.0f} tokens per second, from {arguments.slice.hosts} hosts\n"
    )
    show_table(tabulate(loading, needed, arguments.slice))


def rows_needed(config: Config, windows: int, target: Slice, mfu: float) -> float:
    """Return the rows per second that keep a slice busy."""
    speed = target.chips * target.chip.peak_flops * mfu
    row = training_flops(config.model, config.data.row_positions, windows)
    return speed / row.total


def load_rows(planner: PackedIterator, rows: int) -> Loading:
    """Load rounds of `rows` rows and time each step; a first round warms up and is not counted."""
    mixture, seconds = planner.mixture, {step: [] for step in STEPS}
    tokens = 0
    for i in track(range(ROUNDS + 1), "loading rows"):
        planned, plan = timed(lambda: [planner.plan_row() for _ in range(rows)])
        examples, read = timed(
            lambda planned=planned: [
                [mixture.examples[i] for i in numbers] for numbers, _ in planned
            ]
        )
        filled = [
            PackedRow(mixture.budget, cast(list[Example], row), offsets)
            for row, (_, offsets) in zip(examples, planned, strict=True)
        ]
        batch, assembled = timed(lambda filled=filled: assemble(filled))
        if i:
            tokens += int((batch.segments > 0).sum() + (batch.windows.segments > 0).sum())
            for step, spent in zip(STEPS, (plan, read, assembled), strict=True):
                seconds[step].append(spent / rows)
    return Loading(tokens / ROUNDS / rows, seconds)


def tabulate(loading: Loading, needed: float, target: Slice) -> Table:
    """Return a table with each step's cost, and the cores a host needs for it."""
    table = Table(
        "step",
        "done by",
        "CPU ms per row (min, max)",
        "tokens per second and core",
        "cores per host to feed the slice",
    )
    for step, seconds in loading.seconds.items():
        everywhere = step in ON_EVERY_HOST
        cores = needed * median(seconds) / (1 if everywhere else target.hosts)
        table.add_row(
            step,
            "every host, all rows" if everywhere else "each host, its own rows",
            f"{1e3 * median(seconds):.2f} ({1e3 * min(seconds):.2f}, {1e3 * max(seconds):.2f})",
            f"{loading.tokens / median(seconds):,.0f}",
            f"{cores:.2f}",
        )
    return table


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """Return the result of a call, and the CPU seconds of this process it took."""
    started = time.process_time()
    return call(), time.process_time() - started


if __name__ == "__main__":
    run(main)
