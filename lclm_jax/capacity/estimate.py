"""Times that follow from the figures of a program and the peak speeds of a chip.

A call takes at least the longest of computing, moving bytes between chip and memory (see
`lclm_jax.capacity.traffic`) and sending, and about their sum where nothing overlaps. These are
estimates, not measurements.
"""

from collections.abc import Mapping
from typing import Any

from lclm_jax.capacity.programs import CallSize, Program
from lclm_jax.costs.chips import Slice
from lclm_jax.costs.work import Flops

Figures = dict[str, Any]
TIMES = ("compute_seconds", "memory_seconds", "network_seconds")


def estimate_times(
    program: Program,
    figures: Figures,
    mfu: float,
    sizes: list[CallSize],
    work: Mapping[CallSize, Figures],
) -> Figures:
    """Return the times of the compiled call, and those of the stage or the whole context.

    `sizes` are all calls of the job, `work` the counts of `measure.count_work` for each of them.
    """
    chip = program.target.chip
    sent = figures["collectives"] or ()
    network = sum(item["bytes"] / _bandwidth(program.target, item["axes"]) for item in sent)
    times: Figures = _call_times(program.target, figures, network) | {
        "assumptions": {
            "peak_flops": chip.peak_flops,
            "memory_bytes_per_second": chip.memory_bandwidth,
            "link_bytes_per_second": chip.link_bandwidth,
            "network_bytes_per_second": chip.network_bandwidth,
        }
    }
    if program.job == "train":
        return times | _stage_times(program, figures, mfu)
    if program.job == "decode":
        return times | {"tokens_per_second": 1 / times["call_seconds"][1]}

    whole = _context_times(program, sizes, work, network)
    speed = program.context / whole["call_seconds"][1]
    return times | {"whole": whole, "tokens_per_second": speed}


def _bandwidth(target: Slice, axes: str) -> float:
    """Return the bytes per second over mesh axes joined by `+`.

    Only `data` leaves a TPU slice; on GPUs any axis may leave a host.
    """
    leaves = target.hosts > 1
    if target.chip.kind == "tpu":
        leaves = target.count > 1 and "data" in axes.split("+")
    return target.chip.network_bandwidth if leaves else target.chip.link_bandwidth


def _call_times(target: Slice, work: Figures, network: float) -> Figures:
    """Return the seconds of one call, from full overlap to none."""
    flops = work["matmul_flops"] + work["attention_flops"]["done"]
    times = {
        "compute_seconds": flops / target.chips / target.chip.peak_flops,
        "memory_seconds": work["moved_bytes"] / target.chip.memory_bandwidth,
        "network_seconds": network,
    }
    return {**times, "call_seconds": [max(times.values()), sum(times.values())]}


def _context_times(
    program: Program, sizes: list[CallSize], work: Mapping[CallSize, Figures], network: float
) -> Figures:
    """Sum all calls that read a context; shorter calls send proportionally less."""
    largest, calls = program.largest_call, []
    for size in sizes:
        share = size.length / largest.length
        calls.append(_call_times(program.target, work[size], network * share))

    flops = sum((size.flops for size in sizes), Flops())
    return {
        "calls": len(calls),
        "matmul_flops": sum(work[size]["matmul_flops"] for size in sizes),
        "model_flops": flops.products,
        "attention_flops": flops.attention,
        **{name: sum(call[name] for call in calls) for name in TIMES},
        "call_seconds": [sum(call["call_seconds"][bound] for call in calls) for bound in (0, 1)],
    }


def _stage_times(program: Program, figures: Figures, mfu: float) -> Figures:
    """Return the seconds of a training step at this MFU, and of the whole stage."""
    target = program.target
    flops = figures["model_flops"] + figures["attention_flops"]["model"]
    step_seconds = flops / (target.chips * target.chip.peak_flops * mfu)

    positions = figures["rows"] * figures["positions"]
    steps = (program.budget or program.stage.steps * positions) / positions
    window = program.config.model.compression.window
    encoder_tokens = figures["rows"] * figures["windows"] * window
    return {
        "mfu": mfu,
        "step_seconds": step_seconds,
        "positions_per_second_per_chip": positions / step_seconds / target.chips,
        "encoder_tokens_per_second_per_chip": encoder_tokens / step_seconds / target.chips,
        "stage_steps": round(steps),
        "stage_positions": round(steps * positions),
        "stage_days": steps * step_seconds / 86400,
        "stage_chip_hours": steps * step_seconds / 3600 * target.chips,
    }
