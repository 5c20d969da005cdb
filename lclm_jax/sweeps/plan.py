"""Plan of a sweep before anything is trained: sizes, FLOPs, chip-hours, and whether cells fit."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lclm_jax.capacity.measure import DEFAULT_MFU, measure_program
from lclm_jax.capacity.programs import Program
from lclm_jax.config import Config, RunConfig
from lclm_jax.config.values import to_dict
from lclm_jax.costs.chips import Slice
from lclm_jax.progress import Progress, without_progress
from lclm_jax.sweeps.budget import chip_hours, run_flops
from lclm_jax.sweeps.cells import Cell, Sweep
from lclm_jax.sweeps.training import count_parameters


@dataclass(frozen=True)
class PlannedCell:
    """A cell and the cost of its training.

    Attributes:
        cell: the cell.
        encoder_parameters: of its layers, without embeddings.
        decoder_parameters: of its layers, without embeddings.
        flops: model FLOPs of all stages.
        chip_hours: on the slice at an assumed share of its peak; None without a slice.
        fits: whether every stage fits into the memory of the slice; None without a slice.
    """

    cell: Cell
    encoder_parameters: int
    decoder_parameters: int
    flops: float
    chip_hours: float | None = None
    fits: bool | None = None


def plan_sweep(
    sweep: Sweep,
    target: Slice | None = None,
    mfu: float = DEFAULT_MFU,
    progress: Progress = without_progress,
) -> list[PlannedCell]:
    """Return the plan of every cell; with a slice, their programs are compiled for it.

    Cells that differ only in seeds, steps and directories are compiled once. Raises TopologyError
    where no compiler for the slice is installed.
    """
    fitting: dict[str, bool] = {}
    planned = []
    for cell in progress(sweep.cells, "cells"):
        sizes, flops = count_parameters(cell.config, embeddings=False), run_flops(cell.config)
        plan = PlannedCell(cell, sizes["encoder"], sizes["decoder"], flops)
        if target is not None:
            key = program_key(cell.config)
            if key not in fitting:
                fitting[key] = fits(cell.config, target)
            plan = replace(plan, chip_hours=chip_hours(flops, target, mfu), fits=fitting[key])
        planned.append(plan)
    return planned


def fits(config: Config, target: Slice) -> bool:
    """Return whether every stage fits into the memory of a slice; each is compiled."""
    programs = [Program(config, stage, target) for stage in config.stages]
    return all(measure_program(program)["fits"] for program in programs)


def program_key(config: Config) -> str:
    """Return a text that is equal for configs whose stages compile to the same programs."""
    run = RunConfig(loss_chunk=config.run.loss_chunk, micro_batches=config.run.micro_batches)
    data = replace(config.data, seed=0, directory="data")
    stages = tuple(replace(stage, steps=1) for stage in config.stages)
    return json.dumps(to_dict(replace(config, run=run, data=data, stages=stages)))


def flops_spread(plan: Sequence[PlannedCell]) -> float:
    """Return by what share the FLOPs of the most expensive cell exceed those of the cheapest."""
    flops = [cell.flops for cell in plan]
    return max(flops) / min(flops) - 1
