"""How fast data are prepared and loaded, and how many cores feed a slice: python -m launch.bench.data DIRECTORY

Writes sample input, prepares both mixes of the paper with one process, suggests their budgets, and times what every row costs.
Seconds are of CPU, so a busy machine changes little. The slice's need is an estimate: its peak times --mfu.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TypeVar

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
from lclm_jax.data.synthetic.samples import write_samples
from lclm_jax.data.text.find_tokenizer import find_tokenizer
from lclm_jax.experiment import load_experiment
from lclm_jax.progress import track

T = TypeVar("T")
ROUNDS = 5
STEPS = ("plan", "read", "assemble")
ON_EVERY_HOST = ("plan",)  # all rows of a batch; the other steps only a host's own


@dataclass(frozen=True)
class Loading:
    """What packed rows cost."""

    tokens: float  # of a row, read by both towers
    seconds: dict[str, list[float]]  # of CPU for a row, by step, in every round


def main():
    parser = make_parser(__doc__)
    parser.add_argument("directory", type=path, help="new directory for input and prepared data")
    add_config_arguments(parser, default="configs/lclm_0p6b_4b_16x.py")
    parser.add_argument(
        "--slice", type=parse_slice, default="v5p:4x4x4", help="to be fed (default: %(default)s)"
    )
    parser.add_argument(
        "--mfu",
        type=setting(Mfu),
        default=0.4,
        help="share of its peak it reaches (default: %(default)s)",
    )
    parser.add_argument(
        "--rows", type=setting(Size), default=64, help="rows of a round (default: %(default)s)"
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
        f"\n{recipe.name}: prepared at {tokens / prepared:,.0f} tokens a second and core, {tokens:,} in all; "
        f"{config.data.row_positions} positions and {windows} windows a row are {fills['positions_fill']:.1%} and "
        f"{fills['windows_fill']:.1%} full over {packing['rows']} rows\n"
    )
    needed = rows_needed(config, windows, arguments.slice, arguments.mfu)
    sys.stdout.write(
        f"{arguments.slice} at {arguments.mfu:.0%} of its peak needs {needed:.2f} rows a second, "
        f"{needed * loading.tokens:,.0f} tokens, from {arguments.slice.hosts} hosts (an estimate)\n"
    )
    show_table(tabulate(loading, needed, arguments.slice))


def rows_needed(config: Config, windows: int, where: Slice, mfu: float) -> float:
    """Rows a second that keep a slice busy."""
    return (
        where.chips
        * where.chip.peak_flops
        * mfu
        / training_flops(config.model, config.data.row_positions, windows).total
    )


def load_rows(planner: PackedIterator, rows: int) -> Loading:
    """Rounds of rows, each step of the loader timed by itself; the first round only warms up."""
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
            PackedRow(mixture.budget, some, offsets)
            for some, (_, offsets) in zip(examples, planned, strict=True)
        ]
        batch, assembled = timed(lambda filled=filled: assemble(filled))
        if i:
            tokens += int((batch.segments > 0).sum() + (batch.windows.segments > 0).sum())
            for step, spent in zip(STEPS, (plan, read, assembled), strict=True):
                seconds[step].append(spent / rows)
    return Loading(tokens / ROUNDS / rows, seconds)


def tabulate(loading: Loading, needed: float, where: Slice) -> Table:
    """A line for each step: its cost, and the cores a host needs for it."""
    table = Table(
        "step",
        "done by",
        "CPU ms a row (least, most)",
        "tokens a second and core",
        "cores a host, to feed the slice",
    )
    for step, seconds in loading.seconds.items():
        everywhere = step in ON_EVERY_HOST
        cores = needed * median(seconds) / (1 if everywhere else where.hosts)
        table.add_row(
            step,
            "every host, all rows" if everywhere else "each host, its own rows",
            f"{1e3 * median(seconds):.2f} ({1e3 * min(seconds):.2f}, {1e3 * max(seconds):.2f})",
            f"{loading.tokens / median(seconds):,.0f}",
            f"{cores:.2f}",
        )
    return table


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """What a call returns, and the CPU seconds of this process it took."""
    begun = time.process_time()
    return call(), time.process_time() - begun


if __name__ == "__main__":
    run(main)
