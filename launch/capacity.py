"""Whether a program fits a slice, and what it would cost, before anyone pays: compiled for chips that need not be here.

    python -m launch.capacity --config configs/lclm_0p6b_4b_16x.py --slice v5p:4x4x4
    python -m launch.capacity --config configs/lclm_0p6b_4b_16x.py --slice v6e:1x1 --job decode --context 1000000

Jobs that serve: compress is one pass over 16 windows, prefill the last whole chunk of a prompt, decode one token; the estimate
adds up the calls of a context. They split heads and cache over the slice unless mesh.* is set. Exit status 0 where the program
fits, 3 where it does not.

libtpu compiles for TPUs (pip install -e '.[capacity]'), jax's CUDA plugin for H100 and H200
(pip install -e '.[gpu]' with Python 3.12; without tokamax, attention has no kernel there).
"""

import argparse
import json
import shlex
import sys
from dataclasses import replace

from rich.table import Table

from lclm_jax.capacity.measure import MFU, advise, measure
from lclm_jax.capacity.programs import Program, serve
from lclm_jax.capacity.search import search
from lclm_jax.cli import add_config_arguments, make_parser, path, run, setting, show_table
from lclm_jax.config import Config, ConfigError, StageConfig
from lclm_jax.config.settings import Size
from lclm_jax.costs.chips import Mfu, parse_slice
from lclm_jax.experiment import load_experiment
from lclm_jax.reports import capacity as page

TOO_LARGE = 3  # exit status


def main():
    parser = make_parser(__doc__)
    add_config_arguments(parser)
    parser.add_argument(
        "--slice",
        required=True,
        type=parse_slice,
        help="CHIP:SHAPE, as v5p:4x4x4, v6e:2x4 or h100:8",
    )
    parser.add_argument(
        "--slices",
        type=setting(Size),
        default=1,
        help="so many of them; mesh.data is a multiple of it (default: 1)",
    )
    parser.add_argument(
        "--job",
        default="train",
        choices=("train", "compress", "prefill", "decode"),
        help="(default: %(default)s)",
    )
    parser.add_argument("--stage", help="trained in; by default the one that costs most")
    parser.add_argument(
        "--context",
        type=setting(Size),
        default=1_000_000,
        help="tokens that are served (default: %(default)s)",
    )
    parser.add_argument(
        "--mfu",
        type=setting(Mfu),
        default=MFU,
        help="share of its peak reached in training (default: %(default)s)",
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="try meshes, micro-batches and remat, and rank those that fit",
    )
    parser.add_argument(
        "--tries",
        type=setting(Size),
        default=8,
        help="how many that fit to find with --search (default: %(default)s)",
    )
    parser.add_argument("--html", type=path, metavar="FILE", help="write a page there")
    parser.add_argument(
        "--json",
        type=path,
        metavar="FILE",
        help="write the figures there, with --search a list of them",
    )
    arguments = parser.parse_args()
    config = load_experiment(arguments.config, arguments.set).config
    where = replace(arguments.slice, count=arguments.slices)
    stage, budget = find_stage(config, arguments.stage), find_budget(arguments)
    program = Program(config, stage, where, arguments.job, arguments.context, budget)
    if arguments.job != "train" and not any(one.startswith("mesh.") for one in arguments.set):
        program = serve(program)
    tried = (
        search(program, arguments.tries, arguments.mfu)
        if arguments.search
        else [measure(program, arguments.mfu)]
    )
    if not tried:
        raise ConfigError(
            f"no mesh of {where} divides {config.data.rows} rows and the model; set data.rows"
        )
    first = tried[0]
    advice = advise(program, first)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(
            json.dumps(tried if arguments.search else first, indent=2), encoding="utf-8"
        )
    if arguments.html:
        page.write_page(
            arguments.html,
            shlex.join(["python", "-m", "launch.capacity", *sys.argv[1:]]),
            tried,
            advice,
        )
    if arguments.search:
        show_choices(tried)
    show(first)
    sys.stdout.write(
        "\n".join([f"{page.verdict(first)}.", *(f"  try {one}" for one in advice), page.NOTE, ""])
    )
    if not first["fits"]:
        sys.exit(TOO_LARGE)


def find_stage(config: Config, name: str | None) -> StageConfig:
    """The stage of this name, or the one that trains on most positions in most of its parameters: the recipe's third."""
    if name is None:
        return max(
            config.stages,
            key=lambda stage: (sum(group.rate is not None for group in stage.groups), stage.steps),
        )
    named = [stage for stage in config.stages if stage.name == name]
    if not named:
        raise ConfigError(
            f"expected a stage of {', '.join(stage.name for stage in config.stages)}, got --stage {name}"
        )
    return named[0]


def find_budget(arguments: argparse.Namespace) -> int:
    """Decoder positions the stage is to read in all, whatever batch --set asks for."""
    stage_settings = [setting for setting in arguments.set if setting.startswith("stages.")]
    config = load_experiment(arguments.config, stage_settings).config
    return find_stage(config, arguments.stage).steps * config.data.rows * config.data.positions


def show(figures: page.Figures):
    table = Table(show_header=False)
    for title, rows in page.sections(figures).items():
        table.add_row(f"[bold]{title}[/bold]", "")
        for name, value in rows:
            table.add_row(f"  {name}", str(value))
        table.add_section()
    show_table(table)


def show_choices(tried: list[page.Figures]):
    rows = [page.choice(figures) for figures in tried]
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*row.values())
    show_table(table)


if __name__ == "__main__":
    run(main)
