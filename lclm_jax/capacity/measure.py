"""Figures of a compiled program: memory, FLOPs, bytes sent, and the times that follow from them.

Nothing is executed: all times are estimates.
"""

import re
import time
import warnings
from collections import Counter
from contextlib import nullcontext
from typing import Any

import jax

from lclm_jax.capacity.estimate import Figures, estimate_times
from lclm_jax.capacity.flops import matmul_flops
from lclm_jax.capacity.hlo import Collective, collectives
from lclm_jax.capacity.programs import AbstractCall, CallSize, Program
from lclm_jax.capacity.topology import TopologyError, compiler_versions, slice_devices
from lclm_jax.capacity.traffic import moved_bytes
from lclm_jax.costs.chips import Slice
from lclm_jax.model.params import count_parameters

DEFAULT_MFU = 0.4  # model FLOPs utilisation that training is assumed to reach
# Bytes sent per trained parameter: bf16 weights gathered in the forward and the backward pass,
# bf16 gradients reduced.
FSDP_BYTES = 6
UNIT_BYTES = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def measure_program(program: Program, mfu: float = DEFAULT_MFU) -> Figures:
    """Compile a program and return its figures.

    Bytes are those of one device, FLOPs those of all. Figures that are unknown because the compiler
    ran out of memory are None. Raises ConfigError where the mesh does not suit the slice or the
    model, TopologyError where no compiler is available or its result cannot be read.
    """
    devices = slice_devices(program.target)
    mesh, sizes, largest = program.mesh(devices), program.calls(), program.largest_call

    with jax.set_mesh(mesh), kernels_for(program.target, devices[0]):
        call = program.call(mesh)
        traced = call.trace()
        compiled, sent = _compile(program, call, traced, dict(mesh.shape))
        jaxprs = {largest.length: traced.jaxpr.jaxpr}
        for size in sizes:
            if size.length not in jaxprs:
                jaxprs[size.length] = program.call(mesh, size).trace().jaxpr.jaxpr
        cache_length = call.cache_length
        work = {
            size: count_work(program, size, jaxprs[size.length], cache_length)
            for size in set(sizes)
        }

    parameters = count_parameters(program.config.model)
    figures = {
        **describe(program, dict(mesh.shape), cache_length),
        "compiler": compiler_versions(program.target),
        "parameters": parameters,
        "hbm_bytes": int(program.target.chip.memory_bytes),
        **compiled,
        **work[largest],
        "collective_bytes": None if sent is None else sum(item.total for item in sent),
        "collectives": None if sent is None else _sum_collectives(sent),
        "fsdp_budget_bytes": None,
    }
    if program.job == "train":
        figures["fsdp_budget_bytes"] = FSDP_BYTES * parameters // mesh.shape["tensor"]
        figures["moved_bytes"] += 2 * figures["argument_bytes"]  # by the optimizer
    figures["fits"] = sent is not None and figures["peak_bytes"] <= figures["hbm_bytes"]
    return {**figures, "estimate": estimate_times(program, figures, mfu, sizes, work)}


def _compile(
    program: Program, call: AbstractCall, traced: jax.stages.Traced, mesh: dict[str, int]
) -> tuple[Figures, list[Collective] | None]:
    """Return compile time and memory, and the collectives; None if memory does not suffice."""
    lowered = traced.lower()
    started = time.perf_counter()
    try:
        with warnings.catch_warnings():
            # JAX caches programs for devices that are not present, but cannot read them again.
            warnings.filterwarnings("ignore", "Error reading persistent compilation cache")
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        memory = _exhausted_memory(str(error), call.argument_bytes(traced))
        sent = None
    else:
        text = _read_hlo(compiled, compiler_versions(program.target))
        memory = _compiled_memory(compiled.memory_analysis())
        sent = collectives(text, mesh)
    return {"compile_seconds": time.perf_counter() - started, **memory}, sent


def kernels_for(target: Slice, device: Any) -> Any:
    """Return a context that selects the kernels of a slice: tokamax asks the default device."""
    return jax.default_device(device) if target.chip.kind == "gpu" else nullcontext()


def count_work(program: Program, size: CallSize, jaxpr: Any, cache_length: int) -> Figures:
    """Count the FLOPs and bytes of one call from its jaxpr; the mesh must be in scope."""
    cache, chips = program.cache_read(size, cache_length), program.target.chips
    products, moved = matmul_flops(jaxpr, cache), moved_bytes(jaxpr, cache)
    attention = float(products.pop("attend", 0))
    # Attention with a kernel still has a few plain products beside it.
    done = max(attention, program.kernel_flops(size, cache_length))
    return {
        "matmul_flops": float(products.total()),
        "matmul_flops_by_source": {
            source: float(flops) for source, flops in products.most_common()
        },
        "model_flops": size.flops.products,
        "attention_flops": {
            "model": size.flops.attention,
            "products": attention,
            "done": done,
        },
        "moved_bytes": moved.total() / chips,
        "moved_bytes_by_source": {source: total / chips for source, total in moved.most_common()},
    }


def describe(program: Program, mesh: dict[str, int], cache_length: int) -> Figures:
    """Return the settings of the program, as figures name them."""
    config, target = program.config, program.target
    figures = {"job": program.job, "slice": str(target), "chips": target.chips, "mesh": mesh}
    if program.job == "train":
        return figures | {
            "stage": program.stage.name,
            "rows": config.data.batch_rows,
            "positions": config.data.row_positions,
            "windows": program.stage.row_windows or config.data.row_windows,
            "micro_batches": config.run.micro_batches,
            "remat": config.model.remat,
            "ratio": config.model.compression.ratio,
        }

    largest = program.largest_call
    figures |= {"context": program.context, "latents": program.latents}
    if program.job == "compress":
        return figures
    if program.job == "prefill":
        figures |= {"chunk": largest.length, "filled": largest.filled}
    return figures | {"cached": largest.cached, "cache": cache_length}


def _read_hlo(compiled: jax.stages.Compiled, compiler: str) -> str:
    """Return the text of the compiled program. Raises TopologyError if jaxlib is too old for it."""
    try:
        return compiled.as_text() or ""
    except jax.errors.JaxRuntimeError as error:
        raise TopologyError(
            f"the program compiles, but {compiler} cannot read the result: {error}; install a "
            "newer jax, which may need a newer Python (jax 0.12 on Python 3.12 reads what "
            "libtpu 0.0.52 compiles)"
        ) from error


def _compiled_memory(analysis: Any) -> Figures:
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    arguments_and_results = analysis.argument_size_in_bytes + results
    return {
        "argument_bytes": analysis.argument_size_in_bytes,
        "temp_bytes": analysis.temp_size_in_bytes,
        "peak_bytes": max(analysis.peak_memory_in_bytes, arguments_and_results),
    }


def _exhausted_memory(message: str, argument_bytes: int) -> Figures:
    """Read the memory that was needed from the compiler's message."""
    sizes = re.findall(r"([\d.]+)([KMGT])(?:i?B)?\b", message)
    needed = [int(float(size) * UNIT_BYTES[unit]) for size, unit in sizes]
    peak = max([argument_bytes, *needed])
    return {
        "argument_bytes": argument_bytes,
        "temp_bytes": peak - argument_bytes,
        "peak_bytes": peak,
        "compiler_message": message.splitlines()[0],
    }


def _sum_collectives(sent: list[Collective]) -> list[Figures]:
    """Return the bytes by kind, axes and type, the largest first."""
    sizes: Counter[tuple[str, str, str]] = Counter()
    for collective in sent:
        axes = "+".join(collective.axes) or "none"
        for dtype, size in collective.bytes.items():
            sizes[collective.kind, axes, dtype] += collective.times * size
    return [
        {"kind": kind, "axes": axes, "type": dtype, "bytes": size}
        for (kind, axes, dtype), size in sizes.most_common()
    ]
