"""Which mesh, micro-batches and remat suit a slice: choices in the order of a rough guess, the best of them compiled."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lclm_jax.config import MeshConfig
from lclm_jax.fit.measure import FSDP_BYTES, Figures, measure
from lclm_jax.fit.programs import Program
from lclm_jax.model.attend import TILE
from lclm_jax.progress import track
from lclm_jax.state import count_parameters

STATE_BYTES = 12  # a trained parameter: float32 master and two moments
REMATS = ("full", "dots")


@dataclass(frozen=True)
class Choice:
    """A program, and a guess of what it takes: good enough to say what to try first, and no figure to show."""

    program: Program
    seconds: float
    bytes: float


def search(program: Program, tries: int, mfu: float) -> list[Figures]:
    """Figures of the most promising `tries` choices, those that fit first, the fastest by estimate at the top."""
    promising = sorted(choices(program), key=lambda one: (one.bytes > program.where.chip.memory, one.seconds))[:tries]
    tried = [measure(one.program, mfu) for one in track(promising, "compiling", len(promising))]
    return rank(tried)


def rank(tried: Sequence[Figures]) -> list[Figures]:
    return sorted(tried, key=lambda figures: (not figures["fits"], sum_of_times(figures), figures["peak_bytes"]))


def sum_of_times(figures: Figures) -> float:
    """Seconds of a call in which nothing overlaps."""
    return figures["estimate"]["call_seconds"][1]


def choices(program: Program) -> Iterator[Choice]:
    """Every way to split the model and its batch over the slice that divides evenly."""
    model, slices = program.config.model, program.where.count
    chips = program.where.chips // slices
    for tensor in _divisors(chips):
        if model.decoder.kv_heads % tensor or model.encoder.kv_heads % tensor or model.decoder.mlp % tensor:
            continue
        for context in _divisors(chips // tensor):
            mesh = MeshConfig(data=slices, fsdp=chips // tensor // context, context=context, tensor=tensor)
            if program.job == "train":
                yield from _training(program, mesh)
            elif mesh.fsdp == mesh.data == 1:
                config = replace(program.config, mesh=mesh)
                yield Choice(replace(program, config=config), tensor, 0)  # fewer, larger messages first


def _training(program: Program, mesh: MeshConfig) -> Iterator[Choice]:
    config, data = program.config, program.config.data
    windows = data.rows * (program.stage.windows or data.windows)
    parts = mesh.data * mesh.fsdp
    if data.rows % parts or data.positions % (mesh.context * TILE):
        return
    for micro in _divisors(data.rows // parts):
        if windows // micro % (parts * mesh.context):
            continue
        for remat in REMATS:
            changed = replace(
                config,
                mesh=mesh,
                model=replace(config.model, remat=remat),
                run=replace(config.run, micro_batches=micro),
            )
            yield _guess(replace(program, config=changed))


def _guess(program: Program) -> Choice:
    """Seconds of computing and sending, and bytes of a chip, from sizes alone."""
    config, mesh, chip = program.config, program.config.mesh, program.where.chip
    parameters = count_parameters(config.model)
    tower, micro = config.model.decoder, config.run.micro_batches
    tokens = config.data.rows * config.data.positions / (mesh.data * mesh.fsdp * mesh.context)  # of a chip, in a step
    full = config.model.remat == "full"
    sent = FSDP_BYTES * micro * parameters / mesh.tensor
    if mesh.tensor > 1:  # sums of activations after attention and after the MLP, forward, again, and backward
        sent += tower.layers * (6 if full else 4) * 2 * tokens * tower.width
    if mesh.context > 1:  # keys and values of whole sequences, forward and again, their gradients back
        sent += tower.layers * 4 * 2 * tokens * mesh.context * tower.kv_heads * tower.head_dim / mesh.tensor
    flops = program.model_flops().total * (4 / 3 if full else 1.05) / program.where.chips
    inner = tower.heads * tower.head_dim + 2 * tower.kv_heads * tower.head_dim + 3 * tower.mlp
    kept = tower.width if full else 2 * tower.width + inner / mesh.tensor  # of a token in every layer
    held = STATE_BYTES * parameters * mesh.data / program.where.chips + 2 * tower.layers * tokens / micro * kept
    return Choice(program, flops / chip.flops + sent / chip.link_speed, held)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
