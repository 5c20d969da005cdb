"""Which mesh, micro-batches and remat suit a slice: choices in the order of a rough guess, the best of them compiled."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import Any

import jax

from lclm_jax.capacity.measure import FSDP_BYTES, Figures, measure
from lclm_jax.capacity.programs import Program
from lclm_jax.capacity.topology import slice_devices
from lclm_jax.config import ConfigError, MeshConfig
from lclm_jax.model.params import count_parameters
from lclm_jax.progress import progress_bar

STATE_BYTES = 12  # a trained parameter: float32 master and two moments
REMATS = {
    "full": 4 / 3,
    "attention": 1.3,
    "dots": 1.05,
}  # FLOPs of a step over the model's, roughly
PATIENCE = 4


@dataclass(frozen=True)
class Choice:
    """A program, and a guess of what it takes: good enough to say what to try first, and no figure to show."""

    program: Program
    seconds: float
    bytes: float


def search(program: Program, tries: int, mfu: float) -> list[Figures]:
    """Figures of choices that fit, `tries` of them if there are, and of those compiled on the way that do not; see `rank`.

    The program as it is given comes first, then the most promising. The guess of what fits is rough, and a compiler that gives
    up does so soon: up to `PATIENCE` times as many are compiled.
    """
    devices, tried = slice_devices(program.where), []
    ordered = sorted(
        choices(program),
        key=lambda one: (one.bytes > program.where.chip.memory, one.seconds, one.bytes),
    )
    distinct = dict.fromkeys(
        [*_as_given(program, devices), *(choice.program for choice in ordered)]
    )
    with progress_bar("compiling", tries) as show:
        for one in islice((one for one in distinct if holds(one, devices)), PATIENCE * tries):
            tried.append(measure(one, mfu))
            fitting = sum(figures["fits"] for figures in tried)
            show(fitting, f"{len(tried)} compiled")
            if fitting == tries:
                break
    return rank(tried)


def _as_given(program: Program, devices: Sequence[Any]) -> list[Program]:
    """The program with its mesh written out, so that it can be told from the choices; none where the slice has no such mesh."""
    try:
        shape = program.mesh(devices).shape
    except ConfigError:
        return []
    return [replace(program, config=replace(program.config, mesh=MeshConfig(**shape)))]


def holds(program: Program, devices: Sequence[Any]) -> bool:
    """Whether the slice has the mesh, and the mesh divides the batch and every parameter."""
    try:
        mesh = program.mesh(devices)
        with jax.set_mesh(mesh):
            program.call(mesh)
    except ConfigError:
        return False
    return True


def rank(tried: Sequence[Figures]) -> list[Figures]:
    return sorted(
        tried,
        key=lambda figures: (not figures["fits"], sum_of_times(figures), figures["peak_bytes"]),
    )


def sum_of_times(figures: Figures) -> float:
    """Seconds of a call in which nothing overlaps."""
    return figures["estimate"]["call_seconds"][1]


def choices(program: Program) -> Iterator[Choice]:
    """Every way to split the batch and the heads over the slice that divides evenly; some no slice may hold (see `holds`)."""
    model, chips = program.config.model, program.where.chips
    flops = program.model_flops().total / chips
    for data, tensor, context in product(_divisors(chips), repeat=3):
        if data % program.where.count or chips % (data * tensor * context):
            continue
        if (
            model.decoder.kv_heads % tensor
            or model.encoder.kv_heads % tensor
            or model.decoder.mlp % tensor
        ):
            continue
        mesh = MeshConfig(
            data=data, fsdp=chips // data // tensor // context, context=context, tensor=tensor
        )
        if program.job == "train":
            yield from _training(program, mesh, flops)
        elif mesh.fsdp == mesh.data == 1:
            yield Choice(
                replace(program, config=replace(program.config, mesh=mesh)), tensor, 0
            )  # fewer, larger messages first


def _training(program: Program, mesh: MeshConfig, flops: float) -> Iterator[Choice]:
    config, parts = program.config, mesh.data * mesh.fsdp
    for micro, remat in product(_divisors(config.data.rows // parts), REMATS):
        model, run = replace(config.model, remat=remat), replace(config.run, micro_batches=micro)
        yield _guess(
            replace(program, config=replace(config, mesh=mesh, model=model, run=run)), flops
        )


def _guess(program: Program, flops: float) -> Choice:
    """Seconds of computing and sending, and bytes of a chip, from sizes alone; `flops` are the model's on a chip."""
    config, mesh, chip = program.config, program.config.mesh, program.where.chip
    parameters = count_parameters(config.model)
    tower, micro = config.model.decoder, config.run.micro_batches
    tokens = (
        config.data.rows * config.data.positions / (mesh.data * mesh.fsdp * mesh.context)
    )  # of a chip, in a step
    remat, attended = config.model.remat, tower.heads * tower.head_dim
    sent = FSDP_BYTES * micro * parameters / mesh.tensor
    if (
        mesh.tensor > 1
    ):  # sums of activations after attention and after the MLP, forward, again, and backward
        sent += tower.layers * (4 if remat == "dots" else 6) * 2 * tokens * tower.width
    if (
        mesh.context > 1
    ):  # keys and values of whole sequences, forward and again, their gradients back
        sent += (
            tower.layers
            * 4
            * 2
            * tokens
            * mesh.context
            * tower.kv_heads
            * tower.head_dim
            / mesh.tensor
        )
    inner = (
        2 * (attended + tower.kv_heads * tower.head_dim) + 2 * tower.mlp
    )  # queries, attended, keys, values, gate, up
    kept = {  # of a token in every layer
        "full": tower.width,
        "attention": tower.width + attended / mesh.tensor,
        "dots": 2 * tower.width + inner / mesh.tensor,
    }[remat]
    held = (
        STATE_BYTES * parameters * mesh.data / program.where.chips
        + 2 * tower.layers * tokens / micro * kept
    )
    return Choice(program, flops * REMATS[remat] / chip.flops + sent / chip.link_speed, held)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
