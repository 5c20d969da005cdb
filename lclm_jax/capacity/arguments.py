"""Arguments of `launch.capacity`, and the program that they describe."""

import argparse
from dataclasses import replace

from lclm_jax.capacity.measure import DEFAULT_MFU, Figures, measure_program
from lclm_jax.capacity.programs import Program, with_serving_mesh
from lclm_jax.capacity.search import search_programs
from lclm_jax.cli import add_config_arguments, make_parser, path, setting
from lclm_jax.config import Config, ConfigError, StageConfig
from lclm_jax.config.settings import Size
from lclm_jax.costs.chips import Mfu, parse_slice
from lclm_jax.experiment import load_experiment

JOBS = ("train", "compress", "prefill", "decode")


def parse_arguments(description: str | None) -> argparse.Namespace:
    """Parse the command line of `launch.capacity`."""
    parser = make_parser(description)
    add_config_arguments(parser)
    add = parser.add_argument
    add(
        "--slice",
        required=True,
        type=parse_slice,
        help="CHIP:SHAPE, such as v5p:4x4x4, v6e:2x4 or h100:8",
    )
    add(
        "--slices",
        type=setting(Size),
        default=1,
        help="number of slices, which divides mesh.data (default: 1)",
    )
    add("--job", default="train", choices=JOBS, help="(default: %(default)s)")
    add("--stage", help="stage to train (default: the one that costs most)")
    add(
        "--context",
        type=setting(Size),
        default=1_000_000,
        help="tokens to serve (default: %(default)s)",
    )
    add(
        "--mfu",
        type=setting(Mfu),
        default=DEFAULT_MFU,
        help="assumed model FLOPs utilisation in training (default: %(default)s)",
    )
    add(
        "--search",
        action="store_true",
        help="try meshes, micro-batches and remat, and rank those that fit",
    )
    add(
        "--tries",
        type=setting(Size),
        default=8,
        help="with --search, how many programs that fit to find (default: %(default)s)",
    )
    add("--html", type=path, metavar="FILE", help="write a page")
    add("--json", type=path, metavar="FILE", help="write the figures, a list with --search")
    return parser.parse_args()


def read_program(arguments: argparse.Namespace) -> Program:
    """Return the program that the arguments describe. Raises ConfigError for wrong settings."""
    config = load_experiment(arguments.config, arguments.set).config
    program = Program(
        config,
        stage=find_stage(config, arguments.stage),
        target=replace(arguments.slice, count=arguments.slices),
        job=arguments.job,
        context=arguments.context,
        budget=_stage_positions(arguments),
    )
    sets_mesh = any(assignment.startswith("mesh.") for assignment in arguments.set)
    if arguments.job == "train" or sets_mesh:
        return program
    return with_serving_mesh(program)


def find_stage(config: Config, name: str | None) -> StageConfig:
    """Return the stage of this name, or the most expensive one.

    That is the stage which trains most parameter groups, and among those for most steps.
    """
    if name is None:
        return max(config.stages, key=_stage_cost)
    for stage in config.stages:
        if stage.name == name:
            return stage
    known = ", ".join(stage.name for stage in config.stages)
    raise ConfigError(f"expected a stage of {known}, got --stage {name}")


def _stage_cost(stage: StageConfig) -> tuple[int, int]:
    return sum(group.learning_rate is not None for group in stage.groups), stage.steps


def _stage_positions(arguments: argparse.Namespace) -> int:
    """Return the decoder positions of the whole stage, with the batch of the config file.

    A batch that `--set` changes leaves the stage its budget.
    """
    changes = [assignment for assignment in arguments.set if assignment.startswith("stages.")]
    config = load_experiment(arguments.config, changes).config
    steps = find_stage(config, arguments.stage).steps
    return steps * config.data.batch_rows * config.data.row_positions


def measure_requested(program: Program, arguments: argparse.Namespace) -> list[Figures]:
    """Return the figures of the program, or of all programs that a search tried.

    Raises ConfigError where no mesh of the slice divides the batch and the model.
    """
    if not arguments.search:
        return [measure_program(program, arguments.mfu)]
    results = search_programs(program, arguments.tries, arguments.mfu)
    if not results:
        raise ConfigError(
            f"no mesh of {program.target} divides {program.config.data.batch_rows} rows and the "
            "model; set data.batch_rows"
        )
    return results
