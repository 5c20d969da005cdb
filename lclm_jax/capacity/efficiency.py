"""The compiler's figures beside those of `evaluation.efficiency`, for a slice that is not present.

Programs are compiled and nothing is executed: seconds follow from FLOPs, bytes and the peak speeds
of a chip (see `capacity.estimate`), so a device needs more.
"""

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from lclm_jax.capacity.estimate import Figures as ProgramFigures
from lclm_jax.capacity.measure import measure_program
from lclm_jax.capacity.programs import Program, weight_bytes, with_serving_mesh
from lclm_jax.capacity.topology import compiler_versions, slice_devices
from lclm_jax.config import Config, ModelConfig, StageConfig
from lclm_jax.costs.chips import GIB, Slice
from lclm_jax.distributed.sharding import make_mesh, serving_mesh
from lclm_jax.errors import TextError
from lclm_jax.evaluation.efficiency import (
    TAG_POSITIONS,
    Case,
    EfficiencySettings,
    Figures,
    fill_file,
    list_cases,
)
from lclm_jax.inference.answers import check_length
from lclm_jax.inference.compressor import pass_sizes
from lclm_jax.progress import Progress, track

NO_STAGES = (StageConfig("none", 1, (), ()),)  # a config has at least one; serving ignores it


def estimate_efficiency(
    config: ModelConfig,
    settings: EfficiencySettings,
    target: Slice,
    file: Path,
    progress: Progress = track,
) -> list[dict[str, Any]]:
    """Estimate every view of every length on a slice, and return a row for each.

    Rows have the columns of `evaluation.efficiency.measure_efficiency`, from the same file, with
    the name of the slice as "device" and "compiler" as "source". Seconds are the sum of computing,
    moving bytes and sending, none of which overlap; "least_seconds" is with perfect overlap. Peak
    bytes are those of a chip with the weights of both towers.

    Raises TopologyError where no compiler for the slice is installed.
    """
    cases = list_cases(settings, config)
    compiler = compiler_versions(target)
    columns = {"device": str(target), "source": "compiler", "compiler": compiler}
    estimate = partial(estimate_case, config, settings, target)
    return fill_file(file, settings, config, cases, columns, estimate, progress)


def estimate_case(
    config: ModelConfig, settings: EfficiencySettings, target: Slice, case: Case
) -> Figures:
    """Estimate the reading of a context and a question. Raises TopologyError without a compiler."""
    try:
        check_length(case.positions(config, settings), 1, config)
    except TextError as error:
        return Figures(failure=str(error))
    prefill = measure_once(prefill_program(config, settings, target, case))
    prefill_seconds = prefill["estimate"]["whole"]["call_seconds"]
    programs, compress_seconds = [prefill], [0.0, 0.0]
    if case.view.name == "latents":
        encoder, passes = compress_program(config, settings, target, case.length)
        programs.append(measure_once(encoder))
        pass_seconds = programs[-1]["estimate"]["call_seconds"]
        compress_seconds = [passes * seconds for seconds in pass_seconds]

    peak, available = find_peak(config, target, programs), target.chip.memory_bytes
    if peak > available or not all(program["fits"] for program in programs):
        message = f"needs {peak / GIB:.1f} GiB of every chip, which has {available / GIB:.1f}"
        return Figures(peak_bytes=peak, failure=message)
    least, most = (sum(parts) for parts in zip(compress_seconds, prefill_seconds, strict=True))
    return Figures(
        first_token_seconds=most,
        compress_seconds=compress_seconds[1],
        prefill_seconds=prefill_seconds[1],
        least_seconds=least,
        peak_bytes=peak,
    )


def prefill_program(
    config: ModelConfig, settings: EfficiencySettings, target: Slice, case: Case
) -> Program:
    """Return the program that reads the latents or the text of a context, and a question."""
    as_text = case.view.name == "text"
    program = Program(
        Config(config, NO_STAGES),
        NO_STAGES[0],
        target,
        job="prefill",
        context=case.length,
        ratio=case.view.ratio,
        as_text=as_text,
        other_positions=settings.question_tokens + (0 if as_text else TAG_POSITIONS),
    )
    return with_serving_mesh(program)


def compress_program(
    config: ModelConfig, settings: EfficiencySettings, target: Slice, length: int
) -> tuple[Program, int]:
    """Return the program of an encoder pass, and the number of passes over a context.

    Passes for the last windows, which may be smaller, count as whole ones.
    """
    window = config.compression.window
    windows = -(-length // window)
    sizes = pass_sizes(settings.windows_at_once)
    count = next(size for size in sizes if size <= windows)
    program = Program(
        Config(config, NO_STAGES),
        NO_STAGES[0],
        target,
        job="compress",
        context=count * window,
        windows_at_once=count,
    )
    return with_serving_mesh(program), -(-windows // count)


@cache
def measure_once(program: Program) -> ProgramFigures:
    """Compile a program, once for all contexts that take it."""
    return measure_program(program)


def find_peak(config: ModelConfig, target: Slice, programs: Sequence[ProgramFigures]) -> int:
    """Return the peak bytes of a chip that runs the programs, with the weights that each leaves."""
    mesh = make_mesh(serving_mesh(config, target.chips), slice_devices(target))
    weights = weight_bytes(config, mesh)
    unread = {
        "compress": weights["decoder"],
        "prefill": sum(weights.values()) - weights["decoder"],
    }
    return max(program["peak_bytes"] + unread[program["job"]] for program in programs)
