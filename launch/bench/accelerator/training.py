"""A training step of a packed row: its time, MFU and memory."""

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax

from launch.bench.accelerator.record import Record, Result
from launch.bench.accelerator.rows import small_tokenizer, training_row
from launch.bench.accelerator.sizes import Sizes, TrainingCase
from launch.bench.accelerator.weights import random_params
from lclm_jax.batch import Batch
from lclm_jax.config import Config
from lclm_jax.costs.work import training_flops
from lclm_jax.distributed.sharding import one_device
from lclm_jax.evaluation.memory import memory_limit, peak_memory
from lclm_jax.evaluation.timing import middle, repeat, seconds_of
from lclm_jax.training.state import abstract_state, init_state
from lclm_jax.training.step import train_step

MIN_CASE_SECONDS = 35.0  # for compilation and the timed steps
WARM_UP_STEPS = 2
MIN_STEPS = 5


@dataclass(frozen=True)
class Step(Result):
    """A training step with one setting of `remat`; `seconds` is None if it does not fit."""

    remat: str
    positions: int
    windows: int
    examples: int
    compile_seconds: float
    predicted_peak_bytes: int | None  # by the compiler, for this program
    fits: bool
    seconds: float | None = None
    steps: int = 0
    model_flops: float = 0.0
    losses: tuple[float, ...] = ()
    peak_bytes: int | None = None
    peak_over_predicted: float | None = None


@dataclass(frozen=True)
class Program:
    """A compiled step, its inputs, and the seconds of its compilation."""

    config: Config
    batch: Batch
    step: Any
    seconds: float


def run(sizes: Sizes, record: Record, number: int):
    """Measure a case with every setting of `remat`, starting with the least memory.

    Each is compiled after the one before is measured, because compilation runs candidate kernels
    on the device and would disturb the measurement.
    """
    case = sizes.cases[number]
    for remat in sizes.remats:
        name = f"{case.name}, remat {remat}"
        needs = 2.0 if sizes.tiny else MIN_CASE_SECONDS
        record.measure(
            name,
            lambda remat=remat: measure(compile_case(sizes, case, remat), case, remat),
            needs,
        )


def compile_case(sizes: Sizes, case: TrainingCase, remat: str) -> Program:
    model = replace(case.model, remat=remat)
    config = replace(case, model=model).config(sizes.positions, sizes.windows)
    batch = jax.device_put(training_row(config, small_tokenizer()), jax.local_devices()[0])
    started = time.perf_counter()
    step = compile_step(config, batch)
    return Program(config, batch, step, time.perf_counter() - started)


def measure(program: Program, case: TrainingCase, remat: str) -> Step:
    config, batch, compiled = program.config, program.batch, program.step
    predicted = predicted_peak(compiled)
    settings = {
        "remat": remat,
        "positions": config.data.row_positions,
        "windows": config.data.row_windows,
        "examples": int(batch.segments.max()),
        "compile_seconds": program.seconds,
        "predicted_peak_bytes": predicted,
    }
    limit = memory_limit()
    if limit and predicted and predicted > limit:
        return Step(**settings, fits=False)
    seconds, losses = run_steps(compiled, config, batch)
    peak = peak_memory()
    return Step(
        **settings,
        fits=True,
        seconds=middle(seconds),
        steps=len(seconds),
        model_flops=training_flops(
            config.model, config.data.row_positions, config.data.row_windows, case.trained
        ).total,
        losses=tuple(losses),
        peak_bytes=peak,
        peak_over_predicted=peak / predicted if peak and predicted else None,
    )


def compile_step(config: Config, batch: Any) -> Any:
    """Compile the step without allocating its state."""
    (stage,), mesh = config.stages, one_device()
    step = jax.jit(partial(train_step, config=config, stage=stage), donate_argnums=0)
    with jax.set_mesh(mesh):
        return step.lower(abstract_state(config, stage, mesh), batch).compile()


def run_steps(compiled: Any, config: Config, batch: Any) -> tuple[list[float], list[float]]:
    """Return the seconds of steps after the warm-ups, and all losses."""
    (stage,), mesh, losses = config.stages, one_device(), []
    params = random_params(config.model, "float32", mesh)
    state = init_state(params, stage, config.optimizer)
    state = jax.tree.map(
        lambda x, like: jax.device_put(x, like.sharding), state, abstract_state(config, stage, mesh)
    )
    del params

    def step() -> Any:
        nonlocal state
        state, metrics = compiled(state, batch)
        losses.append(metrics["loss"])
        return state

    for _ in range(WARM_UP_STEPS):
        seconds_of(step)
    seconds = repeat(step, least=MIN_STEPS, most=4 * MIN_STEPS)
    return seconds, [float(loss) for loss in losses]


def predicted_peak(compiled: Any) -> int | None:
    """Return the peak bytes of a program by the compiler's estimate."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    buffers = (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
    )
    return max(analysis.peak_memory_in_bytes, buffers)
