"""What a compiler says of a program on a slice, and what follows from it.

Nothing is executed: these are estimates.
"""

import re
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import jax

from lclm_jax.capacity.flops import matmul_flops
from lclm_jax.capacity.hlo import Collective, collectives
from lclm_jax.capacity.programs import Call, Program, Turn
from lclm_jax.capacity.topology import TopologyError, compiler, slice_devices
from lclm_jax.capacity.traffic import moved_bytes
from lclm_jax.costs.chips import Slice
from lclm_jax.costs.work import Flops
from lclm_jax.data.records import count_latents
from lclm_jax.model.params import count_parameters

Figures = dict[str, Any]
MFU = 0.4  # share of its peak that a slice is assumed to reach in training, by model FLOPs
# Of a trained parameter: bf16 weights gathered forward and backward, bf16 gradients reduced.
FSDP_BYTES = 6


def measure(program: Program, mfu: float = MFU) -> Figures:
    """Compiles a program. Bytes are those of one device, FLOPs those of all; what nobody knows of a
    program that the compiler refuses, its collectives, is None.

    Raises ConfigError where the mesh does not suit the slice or the model, TopologyError where
    nothing compiles for it or what was compiled cannot be read.
    """
    devices = slice_devices(program.where)
    mesh, turns, dearest = program.mesh(devices), program.turns(), program.dearest
    with jax.set_mesh(mesh), kernels_for(program.where, devices[0]):
        call = program.call(mesh)
        traced = call.trace()
        compiled, sent = _compile(program, call, traced, dict(mesh.shape))
        jaxprs = {dearest.length: traced.jaxpr.jaxpr}
        for turn in turns:
            if turn.length not in jaxprs:
                jaxprs[turn.length] = program.call(mesh, turn).trace().jaxpr.jaxpr
        length = call.cache_length
        work = {turn: count(program, turn, jaxprs[turn.length], length) for turn in set(turns)}
    parameters = count_parameters(program.config.model)
    figures = {
        **describe(program, dict(mesh.shape), length),
        "compiler": compiler(program.where),
        "parameters": parameters,
        "hbm_bytes": int(program.where.chip.memory),
        **compiled,
        **work[dearest],
        "collective_bytes": None if sent is None else sum(one.total for one in sent),
        "collectives": None if sent is None else _tally(sent),
        "fsdp_budget_bytes": None,
    }
    if program.job == "train":
        figures["fsdp_budget_bytes"] = FSDP_BYTES * parameters // mesh.shape["tensor"]
        figures["moved_bytes"] += 2 * figures["argument_bytes"]  # by the optimiser
    figures["fits"] = sent is not None and figures["peak_bytes"] <= figures["hbm_bytes"]
    return {**figures, "estimate": estimate(program, figures, mfu, turns, work)}


def _compile(
    program: Program, call: Call, traced: jax.stages.Traced, mesh: dict[str, int]
) -> tuple[Figures, list[Collective] | None]:
    """Seconds, memory and what is sent; None where the compiler found that it does not fit."""
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
        memory, sent = _memory(compiled.memory_analysis()), collectives(text, mesh)
    return {"compile_seconds": time.perf_counter() - begun, **memory}, sent


def kernels_for(where: Slice, device: Any) -> Any:
    """A context in which kernels are those of a slice: tokamax's ask the default device."""
    return jax.default_device(device) if where.chip.kind == "gpu" else nullcontext()


def count(program: Program, turn: Turn, jaxpr: Any, cache_length: int) -> Figures:
    """Products and bytes of one turn, counted from its jaxpr; the mesh must be in scope."""
    cached, chips = program.cached(turn, cache_length), program.where.chips
    products, moved = matmul_flops(jaxpr, cached), moved_bytes(jaxpr, cached)
    attention = float(products.pop("attend", 0))  # kernels have a few products beside them
    return {
        "matmul_flops": float(products.total()),
        "matmul_flops_by_source": {source: float(some) for source, some in products.most_common()},
        "model_flops": turn.flops.products,
        "attention_flops": {
            "model": turn.flops.attention,
            "products": attention,
            "done": max(attention, program.kernel_flops(turn, cache_length)),
        },
        "moved_bytes": moved.total() / chips,
        "moved_bytes_by_source": {source: some / chips for source, some in moved.most_common()},
    }


def describe(program: Program, mesh: dict[str, int], cache_length: int) -> Figures:
    """What was compiled."""
    config, where = program.config, program.where
    figures = {"job": program.job, "slice": str(where), "chips": where.chips, "mesh": mesh}
    if program.job == "train":
        return figures | {
            "stage": program.stage.name,
            "rows": config.data.rows,
            "positions": config.data.positions,
            "windows": program.stage.windows or config.data.windows,
            "micro_batches": config.run.micro_batches,
            "remat": config.model.remat,
            "ratio": config.model.compression.ratio,
        }
    latents, dearest = count_latents(program.context, config.model), program.dearest
    figures |= {"context": program.context, "latents": latents}
    if program.job == "compress":
        return figures
    if program.job == "prefill":
        figures |= {"chunk": dearest.length, "filled": dearest.filled}
    return figures | {"cached": dearest.cached, "cache": cache_length}


def _read(compiled: jax.stages.Compiled, name: str) -> str:
    """The compiled program's text, which a libtpu newer than jaxlib may write another way."""
    try:
        return compiled.as_text() or ""
    except jax.errors.JaxRuntimeError as error:
        raise TopologyError(
            f"the program compiles, but {name} cannot read what was made: {error}; install a newer "
            "jax, which may need a newer Python (jax 0.12 on Python 3.12 reads what libtpu 0.0.52 "
            "makes)"
        ) from error


def _memory(analysis: Any) -> Figures:
    made = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    held = analysis.argument_size_in_bytes + made
    return {
        "argument_bytes": analysis.argument_size_in_bytes,
        "temp_bytes": analysis.temp_size_in_bytes,
        "peak_bytes": max(analysis.peak_memory_in_bytes, held),
    }


def _exhausted(message: str, arguments: int) -> Figures:
    """The compiler gave up: what it says it needed in all, beside what the arguments take."""
    unit = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    sizes = re.findall(r"([\d.]+)([KMGT])(?:i?B)?\b", message)
    needed = [int(float(size) * unit[letter]) for size, letter in sizes]
    peak = max([arguments, *needed])
    first = message.splitlines()[0]
    return {
        "argument_bytes": arguments,
        "temp_bytes": peak - arguments,
        "peak_bytes": peak,
        "compiler_message": first,
    }


def _tally(sent: list[Collective]) -> list[Figures]:
    """Bytes by kind, axes and type, the most first."""
    sizes: Counter[tuple[str, str, str]] = Counter()
    for one in sent:
        for kind, size in one.bytes.items():
            sizes[one.kind, "+".join(one.axes) or "none", kind] += one.times * size
    names = ("kind", "axes", "type", "bytes")
    return [dict(zip(names, (*key, size), strict=True)) for key, size in sizes.most_common()]


def estimate(
    program: Program,
    figures: Figures,
    mfu: float,
    turns: list[Turn],
    work: Mapping[Turn, Figures],
) -> Figures:
    """Times that follow from a chip's peak speeds: no measurement.

    A call takes at least the longest of computing, moving bytes between chips and their memory
    (see `traffic`) and sending, and about their sum where nothing overlaps. Attention in a kernel
    is counted from shapes.
    """
    chip, dearest = program.where.chip, program.dearest
    sent = figures["collectives"] or ()
    network = sum(one["bytes"] / _speed(program.where, one["axes"]) for one in sent)
    found = _call(program, figures, network) | {
        "assumptions": {
            "peak_flops": chip.flops,
            "memory_bytes_per_second": chip.memory_speed,
            "link_bytes_per_second": chip.link_speed,
            "network_bytes_per_second": chip.network_speed,
        }
    }
    if program.job == "train":
        return found | _stage(program, figures, mfu)
    if program.job == "decode":
        return found | {"tokens_per_second": 1 / found["call_seconds"][1]}
    done = [work[turn] for turn in turns]
    shares = [turn.length / dearest.length for turn in turns]
    calls = [_call(program, *one) for one in zip(done, [network * x for x in shares], strict=True)]
    whole = _whole(turns, done, calls)
    speed = program.context / whole["call_seconds"][1]
    return found | {"whole": whole, "tokens_per_second": speed}


def _call(program: Program, work: Figures, network: float) -> Figures:
    """Seconds of one call that does so much work."""
    chip, flops = program.where.chip, work["matmul_flops"] + work["attention_flops"]["done"]
    parts = {
        "compute_seconds": flops / program.where.chips / chip.flops,
        "memory_seconds": work["moved_bytes"] / chip.memory_speed,
        "network_seconds": network,
    }
    return {**parts, "call_seconds": [max(parts.values()), sum(parts.values())]}


def _whole(turns: list[Turn], work: list[Figures], calls: list[Figures]) -> Figures:
    """All calls that serve a context, one after the other."""
    flops = sum((turn.flops for turn in turns), Flops())
    parts = ("compute_seconds", "memory_seconds", "network_seconds")
    return {
        "calls": len(calls),
        "matmul_flops": sum(some["matmul_flops"] for some in work),
        "model_flops": flops.products,
        "attention_flops": flops.attention,
        **{part: sum(call[part] for call in calls) for part in parts},
        "call_seconds": [sum(call["call_seconds"][i] for call in calls) for i in (0, 1)],
    }


def _stage(program: Program, figures: Figures, mfu: float) -> Figures:
    """A training step at a share of the peak, and the stage at that speed."""
    chip, chips = program.where.chip, program.where.chips
    flops = figures["model_flops"] + figures["attention_flops"]["model"]
    step = flops / (chips * chip.flops * mfu)
    positions = figures["rows"] * figures["positions"]
    steps = (program.budget or program.stage.steps * positions) / positions
    text = figures["rows"] * figures["windows"] * program.config.model.compression.window
    return {
        "mfu": mfu,
        "step_seconds": step,
        "positions_per_second_per_chip": positions / step / chips,
        "encoder_tokens_per_second_per_chip": text / step / chips,
        "stage_steps": round(steps),
        "stage_positions": round(steps * positions),
        "stage_days": steps * step / 86400,
        "stage_chip_hours": steps * step / 3600 * chips,
    }


def _speed(where: Slice, axes: str) -> float:
    """Bytes a second over these axes. Of TPUs only `data` leaves a slice, of GPUs any may leave a
    host."""
    tpu = where.chip.kind == "tpu"
    leaves = where.count > 1 and "data" in axes.split("+") if tpu else where.hosts > 1
    return where.chip.network_speed if leaves else where.chip.link_speed


def advise(program: Program, figures: Figures) -> list[str]:
    """What to turn when a program does not fit, the gentlest first."""
    if figures["fits"]:
        return []
    config, chips, hbm = program.config, program.where.chips, figures["hbm_bytes"]
    memory, given = f"{hbm / 2**30:.1f} GiB", figures["argument_bytes"]
    more = f"a slice of more chips than {chips}, or of chips with more memory than {memory}"
    copies = program.job == "train" and figures["mesh"]["data"] > 1
    if given > hbm and not copies:
        return [f"{more}: what it is handed takes {given / 2**30:.1f} GiB already"]
    if program.job != "train":
        return [
            "--set model.compression.ratio=... : at a larger ratio cache and prefill are smaller",
            more,
        ]
    advice, mesh, own = (
        [],
        figures["mesh"],
        figures["rows"] // (figures["mesh"]["data"] * figures["mesh"]["fsdp"]),
    )
    if mesh["data"] > 1:
        parts = f"--set mesh.data=1 --set mesh.fsdp={mesh['data'] * mesh['fsdp']}"
        advice.append(f"{parts}: the model's parts on all chips")
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
