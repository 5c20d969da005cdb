"""Search for the mesh, micro-batches and remat that suit a slice.

A rough guess from sizes alone puts the candidates in order; the most promising are compiled.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import Any

import jax

from lclm_jax.capacity.measure import FSDP_BYTES, Figures, measure_program
from lclm_jax.capacity.programs import Program
from lclm_jax.capacity.topology import slice_devices
from lclm_jax.config import Config, ConfigError, MeshConfig, TransformerConfig
from lclm_jax.model.params import count_parameters
from lclm_jax.progress import progress_bar

STATE_BYTES = 12  # per trained parameter: float32 weight and two moments
REMAT_FLOPS = {"full": 4 / 3, "attention": 1.3, "dots": 1.05}  # of a step, over the model's
MAX_COMPILED_PER_TRY = 4  # the guess of what fits is rough, and a failed compilation is short


@dataclass(frozen=True)
class Candidate:
    """A program with a guess of its time and memory, only good enough to order candidates."""

    program: Program
    seconds: float
    bytes: float  # of one chip


def search_programs(program: Program, tries: int, mfu: float) -> list[Figures]:
    """Return figures of up to `tries` programs that fit, and of those compiled that do not.

    The program as given comes first, then the most promising candidates; up to
    MAX_COMPILED_PER_TRY times `tries` are compiled. The result is ordered by `rank`.
    """
    devices = slice_devices(program.target)
    memory = program.target.chip.memory_bytes
    ordered = sorted(
        candidates(program),
        key=lambda candidate: (candidate.bytes > memory, candidate.seconds, candidate.bytes),
    )
    programs = [*_with_explicit_mesh(program, devices)]
    programs += [candidate.program for candidate in ordered]
    possible = (item for item in dict.fromkeys(programs) if is_possible(item, devices))

    results: list[Figures] = []
    with progress_bar("compiling", tries) as show:
        for item in islice(possible, MAX_COMPILED_PER_TRY * tries):
            results.append(measure_program(item, mfu))
            fitting = sum(figures["fits"] for figures in results)
            show(fitting, f"{len(results)} compiled")
            if fitting == tries:
                break
    return rank(results)


def _with_explicit_mesh(program: Program, devices: Sequence[Any]) -> list[Program]:
    """Return the program with its mesh spelled out, so that it equals a candidate with that mesh.

    Empty where the slice has no such mesh.
    """
    try:
        shape = program.mesh(devices).shape
    except ConfigError:
        return []
    return [_with_mesh(program, MeshConfig(**shape))]


def _with_mesh(program: Program, mesh: MeshConfig) -> Program:
    return replace(program, config=replace(program.config, mesh=mesh))


def is_possible(program: Program, devices: Sequence[Any]) -> bool:
    """Return True if the slice has the mesh, and the mesh divides the batch and the parameters."""
    try:
        mesh = program.mesh(devices)
        with jax.set_mesh(mesh):
            program.call(mesh)
    except ConfigError:
        return False
    return True


def rank(results: Sequence[Figures]) -> list[Figures]:
    """Order figures: those that fit first, then by time without overlap, then by memory."""
    return sorted(
        results,
        key=lambda figures: (
            not figures["fits"],
            seconds_without_overlap(figures),
            figures["peak_bytes"],
        ),
    )


def seconds_without_overlap(figures: Figures) -> float:
    """Return the seconds of a call in which nothing overlaps."""
    return figures["estimate"]["call_seconds"][1]


def candidates(program: Program) -> Iterator[Candidate]:
    """Yield every even split of batch and heads over the slice; see `is_possible` for the rest."""
    chips = program.target.chips
    model_flops = program.model_flops().total / chips

    for data, tensor, context in product(_divisors(chips), repeat=3):
        crosses_slices_evenly = data % program.target.count == 0
        if not crosses_slices_evenly or chips % (data * tensor * context):
            continue
        if not _divides_model(tensor, program.config):
            continue
        fsdp = chips // data // tensor // context
        mesh = MeshConfig(data=data, fsdp=fsdp, context=context, tensor=tensor)

        if program.job == "train":
            yield from _training_candidates(program, mesh, model_flops)
        elif fsdp == data == 1:
            # Fewer, larger messages first.
            yield Candidate(_with_mesh(program, mesh), tensor, 0)


def _divides_model(tensor: int, config: Config) -> bool:
    encoder, decoder = config.model.encoder, config.model.decoder
    sizes = (decoder.kv_heads, encoder.kv_heads, decoder.mlp)
    return all(size % tensor == 0 for size in sizes)


def _training_candidates(
    program: Program, mesh: MeshConfig, model_flops: float
) -> Iterator[Candidate]:
    config = program.config
    rows = config.data.batch_rows // (mesh.data * mesh.fsdp)
    for micro_batches, remat in product(_divisors(rows), REMAT_FLOPS):
        model = replace(config.model, remat=remat)
        run = replace(config.run, micro_batches=micro_batches)
        changed = replace(config, mesh=mesh, model=model, run=run)
        yield _guess(replace(program, config=changed), model_flops)


def _guess(program: Program, model_flops: float) -> Candidate:
    """Guess seconds and memory of a training step; `model_flops` are those of one chip."""
    config, mesh, chip = program.config, program.config.mesh, program.target.chip
    parameters = count_parameters(config.model)
    batch_parts = mesh.data * mesh.fsdp * mesh.context
    tokens_per_chip = config.data.batch_rows * config.data.row_positions / batch_parts

    compute_seconds = model_flops * REMAT_FLOPS[config.model.remat] / chip.peak_flops
    sent = FSDP_BYTES * config.run.micro_batches * parameters / mesh.tensor
    sent += _activation_bytes_sent(config, tokens_per_chip)

    state = STATE_BYTES * parameters * mesh.data / program.target.chips
    kept = _values_kept(config.model.decoder, config.model.remat, mesh.tensor)
    activations = (
        2 * config.model.decoder.layers * tokens_per_chip / config.run.micro_batches * kept
    )
    return Candidate(program, compute_seconds + sent / chip.link_bandwidth, state + activations)


def _activation_bytes_sent(config: Config, tokens: float) -> float:
    """Guess the bytes of bf16 activations that a chip sends in a step."""
    mesh, decoder, sent = config.mesh, config.model.decoder, 0.0
    if mesh.tensor > 1:
        # Sums after attention and after the MLP: forward, recomputed and backward.
        sums = 4 if config.model.remat == "dots" else 6
        sent += decoder.layers * sums * 2 * tokens * decoder.width
    if mesh.context > 1:
        # Keys and values of whole sequences, forward and recomputed, and their gradients.
        kv_width = decoder.kv_heads * decoder.head_dim
        sent += decoder.layers * 4 * 2 * tokens * mesh.context * kv_width / mesh.tensor
    return sent


def _values_kept(tower: TransformerConfig, remat: str, tensor: int) -> float:
    """Count the values that a layer keeps of each token for the backward pass."""
    attended = tower.heads * tower.head_dim
    if remat == "full":
        return tower.width
    if remat == "attention":
        return tower.width + attended / tensor
    # Queries, attention output, keys, values, gate and up projection.
    inner = 2 * (attended + tower.kv_heads * tower.head_dim) + 2 * tower.mlp
    return 2 * tower.width + inner / tensor


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
