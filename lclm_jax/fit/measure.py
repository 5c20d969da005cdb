"""What a compiler says of a program on a slice, and what follows from it. Nothing is executed: these are estimates."""

import re
import time
from collections import Counter
from typing import Any

import jax

from lclm_jax.data.spans import count_latents
from lclm_jax.fit.flops import matmul_flops
from lclm_jax.fit.hlo import Collective, collectives
from lclm_jax.fit.programs import Program
from lclm_jax.fit.topology import TopologyError, compiler, slice_devices
from lclm_jax.hardware import Slice
from lclm_jax.language_model import WINDOWS_AT_ONCE
from lclm_jax.state import count_parameters

Figures = dict[str, Any]
MFU = 0.4  # share of its peak that a slice is assumed to reach in training, by model FLOPs
FSDP_BYTES = 6  # a trained parameter: bf16 weights gathered forward and backward, bf16 gradients reduced


def measure(program: Program, mfu: float = MFU) -> Figures:
    """Compiles a program. Bytes are those of one device, FLOPs those of all; what nobody knows of a program that the
    compiler refuses, its collectives, is None.

    Raises ConfigError where the mesh does not suit the slice or the model, TopologyError where nothing compiles for it
    or what was compiled cannot be read.
    """
    mesh = program.mesh(slice_devices(program.where))
    with jax.set_mesh(mesh):
        call = program.call(mesh)
        traced = call.trace()
        by_source = matmul_flops(traced.jaxpr.jaxpr)
        lowered = traced.lower()
        begun = time.perf_counter()
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            memory, sent = _exhausted(str(error), call.argument_bytes(traced)), None
        else:
            text = _read(compiled, compiler(program.where))
            memory, sent = _memory(compiled.memory_analysis()), collectives(text, dict(mesh.shape))
        seconds = time.perf_counter() - begun
    parameters = count_parameters(program.config.model)
    model, attention = program.model_flops(), by_source.pop("attend", 0)
    figures = {
        **describe(program, dict(mesh.shape)),
        "compiler": compiler(program.where),
        "compile_seconds": seconds,
        "parameters": parameters,
        "hbm_bytes": int(program.where.chip.memory),
        **memory,
        "matmul_flops": float(by_source.total()),
        "matmul_flops_by_source": {source: float(count) for source, count in by_source.most_common()},
        "model_flops": model.products,
        "attention_flops": {"model": model.attention, "products": float(attention)},
        "collective_bytes": None if sent is None else sum(one.total for one in sent),
        "collectives": None if sent is None else _tally(sent),
        "fsdp_budget_bytes": FSDP_BYTES * parameters // mesh.shape["tensor"] if program.job == "train" else None,
    }
    figures["fits"] = sent is not None and figures["peak_bytes"] <= figures["hbm_bytes"]
    return {**figures, "estimate": estimate(program, figures, mfu)}


def describe(program: Program, mesh: dict[str, int]) -> Figures:
    """What was compiled."""
    config, told = program.config, {"job": program.job, "slice": str(program.where), "chips": program.where.chips, "mesh": mesh}
    if program.job == "train":
        return told | {
            "stage": program.stage.name,
            "rows": config.data.rows,
            "positions": config.data.positions,
            "windows": program.stage.windows or config.data.windows,
            "micro_batches": config.run.micro_batches,
            "remat": config.model.remat,
            "ratio": config.model.compression.ratio,
        }
    return told | {"context": program.context, "latents": count_latents(program.context, config.model)}


def _read(compiled: jax.stages.Compiled, name: str) -> str:
    """The compiled program's text; libtpu may be newer than the jaxlib that must understand what it made."""
    try:
        return compiled.as_text() or ""
    except jax.errors.JaxRuntimeError as error:
        raise TopologyError(
            f"the program compiles, but {name} cannot read what was made: {error}; install a newer jax, which may need a newer "
            "Python (jax 0.12 on Python 3.12 reads what libtpu 0.0.52 makes)"
        ) from error


def _memory(analysis: Any) -> Figures:
    held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return {
        "argument_bytes": analysis.argument_size_in_bytes,
        "temp_bytes": analysis.temp_size_in_bytes,
        "peak_bytes": max(analysis.peak_memory_in_bytes, held),
    }


def _exhausted(message: str, arguments: int) -> Figures:
    """The compiler gave up: what it says it needed in all, beside what the arguments take."""
    unit = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    needed = [int(float(size) * unit[letter]) for size, letter in re.findall(r"([\d.]+)([KMGT])(?:i?B)?\b", message)]
    peak = max([arguments, *needed])
    first = message.splitlines()[0]
    return {"argument_bytes": arguments, "temp_bytes": peak - arguments, "peak_bytes": peak, "compiler_message": first}


def _tally(sent: list[Collective]) -> list[Figures]:
    """Bytes by kind, axes and type, the most first."""
    sizes: Counter[tuple[str, str, str]] = Counter()
    for one in sent:
        for kind, size in one.bytes.items():
            sizes[one.kind, "+".join(one.axes) or "none", kind] += one.times * size
    return [{"kind": kind, "axes": axes, "type": type_, "bytes": size} for (kind, axes, type_), size in sizes.most_common()]


def estimate(program: Program, figures: Figures, mfu: float) -> Figures:
    """Times that follow from a chip's peak speeds: no measurement.

    A call takes at least the longest of computing, reading its arguments once and sending, and about their sum where nothing
    overlaps. Attention is counted as the products show it, or, in a kernel, as the model's and half as much again for what
    training recomputes.
    """
    chip, train = program.where.chip, program.job == "train"
    attention = figures["attention_flops"]["products"] or figures["attention_flops"]["model"] * (1.5 if train else 1.0)
    parts = {
        "compute_seconds": (figures["matmul_flops"] + attention) / program.where.chips / chip.flops,
        "memory_seconds": figures["argument_bytes"] / chip.memory_speed,
        "network_seconds": sum(one["bytes"] / _speed(program.where, one["axes"]) for one in figures["collectives"] or ()),
    }
    told = {
        **parts,
        "call_seconds": [max(parts.values()), sum(parts.values())],
        "assumptions": {
            "peak_flops": chip.flops,
            "memory_bytes_per_second": chip.memory_speed,
            "link_bytes_per_second": chip.link_speed,
            "network_bytes_per_second": chip.network_speed,
        },
    }
    if not train:
        tokens = {"compress": WINDOWS_AT_ONCE * program.config.model.compression.window, "prefill": program.context, "decode": 1}
        return told | {"tokens_per_second": tokens[program.job] / sum(parts.values())}
    step = (figures["model_flops"] + figures["attention_flops"]["model"]) / (program.where.chips * chip.flops * mfu)
    positions = figures["rows"] * figures["positions"]
    steps = (program.budget or program.stage.steps * positions) / positions
    text = figures["rows"] * figures["windows"] * program.config.model.compression.window
    return told | {
        "mfu": mfu,
        "step_seconds": step,
        "positions_per_second_per_chip": positions / step / program.where.chips,
        "encoder_tokens_per_second_per_chip": text / step / program.where.chips,
        "stage_steps": round(steps),
        "stage_positions": round(steps * positions),
        "stage_days": steps * step / 86400,
        "stage_chip_hours": steps * step / 3600 * program.where.chips,
    }


def _speed(where: Slice, axes: str) -> float:
    """Bytes a second over these axes: of TPUs only `data` leaves a slice, of GPUs any may leave a host."""
    tpu = where.chip.kind == "tpu"
    leaves = where.count > 1 and "data" in axes.split("+") if tpu else where.hosts > 1
    return where.chip.network_speed if leaves else where.chip.link_speed


def advise(program: Program, figures: Figures) -> list[str]:
    """What to turn when a program does not fit, the gentlest first."""
    if figures["fits"]:
        return []
    config, chips, hbm = program.config, program.where.chips, figures["hbm_bytes"]
    more = f"a slice of more chips than {chips}, or of chips with more memory than {hbm / 2**30:.1f} GiB"
    if figures["argument_bytes"] > hbm and not (program.job == "train" and figures["mesh"]["data"] > 1):
        return [f"{more}: what it is handed takes {figures['argument_bytes'] / 2**30:.1f} GiB already"]
    if program.job != "train":
        return ["--set model.compression.ratio=... : at a larger ratio cache and prefill are smaller", more]
    advice, mesh, own = [], figures["mesh"], figures["rows"] // (figures["mesh"]["data"] * figures["mesh"]["fsdp"])
    if mesh["data"] > 1:
        advice.append(f"--set mesh.data=1 --set mesh.fsdp={mesh['data'] * mesh['fsdp']}: the model's parts on all chips")
    if config.model.remat != "full":
        advice.append("--set model.remat=full: layers keep only what enters them")
    micro = config.run.micro_batches
    while own % (2 * micro) == 0 and micro < config.run.micro_batches * figures["peak_bytes"] / hbm:
        micro *= 2
    if micro > config.run.micro_batches:
        advice.append(f"--set run.micro_batches={micro}: fewer rows in memory at a time")
    if own <= micro and mesh["fsdp"] > 1:
        advice.append(f"--set mesh.context={2 * mesh['context']}: each sequence on more chips")
    if config.run.loss_chunk > 256:
        advice.append(f"--set run.loss_chunk={config.run.loss_chunk // 2}: fewer logits at once")
    return [*advice, "--search: tries them", more]
