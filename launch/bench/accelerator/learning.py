"""Reconstruction accuracy of a small model by the minutes it was trained."""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from configs import accelerator as settings
from launch.bench.accelerator.record import Record, Result
from launch.bench.accelerator.sizes import Sizes
from lclm_jax.batch import Batch, empty_batch, empty_windows
from lclm_jax.config import CompressionConfig, Config, StageConfig
from lclm_jax.data.loading import PackedBatches, StageData, row_budget
from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.distributed.sharding import one_device
from lclm_jax.model.params import count_parameters, init_params
from lclm_jax.training.state import TrainState, abstract_state, begin_stage
from lclm_jax.training.step import train_step
from lclm_jax.training.validation import Validation

MEASUREMENT = "reconstruction"
VALIDATIONS_PER_STAGE = 8
LANGUAGE_SHARE = 0.35  # of the time, in which the decoder learns in plain text
MAX_PACKING_PROCESSES = 8
BATCHES_PER_PROCESS = 12  # for every stage
RESERVE_SECONDS = 4.0  # for the last validation
TINY_MODULES = 40  # Python modules that the tiny run reads
TINY_SECONDS = 4.0
STREAM = "reconstruction/docs"


@dataclass(frozen=True)
class Point:
    """Accuracies on held-out text at one moment of training."""

    minutes: float  # of training steps only
    stage: str
    step: int
    accuracy_latents: float  # share of tokens predicted, given those before
    accuracy_text: float
    accuracy_nothing: float
    loss: float  # from latents


@dataclass(frozen=True)
class Curve(Result):
    """Accuracies over the whole training."""

    parameters: int
    seconds_per_step: float  # of the last stage
    accuracy: float  # from latents, at the end
    points: list[Point]


def run(sizes: Sizes, record: Record, work: Path):
    record.measure(MEASUREMENT, partial(learn, sizes, record, work), 10.0)


def learn(sizes: Sizes, record: Record, work: Path) -> Curve:
    """Train until the part's time is over and write the curve after every validation.

    The programs are compiled while the text is prepared.
    """
    config, mesh = choose_config(sizes, work), one_device()
    with ThreadPoolExecutor(len(config.stages)) as threads:
        compiling = [threads.submit(compile_step, config, stage, mesh) for stage in config.stages]
        settings.prepare(config, TINY_MODULES if sizes.tiny else None)
        batches = read_batches(sizes, config)
    steps = [future.result() for future in compiling]
    record.say("learning: text prepared, programs compiled")
    tokenizer = Tokenizer.load(Path(config.data.directory) / "tokenizer")
    total = min(record.left() - RESERVE_SECONDS, TINY_SECONDS if sizes.tiny else 3600.0)
    params, points, spent = init_params(config.model, mesh, config.run.seed), [], 0.0
    curve = Curve(count_parameters(config.model), 0.0, 0.0, points)
    shares = (LANGUAGE_SHARE, 1 - LANGUAGE_SHARE)
    with jax.set_mesh(mesh):
        for stage, step, rows, share in zip(config.stages, steps, batches, shares, strict=True):
            validate = Validation(StageData(config, stage, tokenizer), mesh)
            begin = begin_stage(params, config, stage, mesh)
            for leg in train(step, begin, cycle(rows), stage.steps, share * total):
                params = leg.state.params
                points.append(validate_leg(validate, leg, stage, spent))
                curve = replace(
                    curve,
                    seconds_per_step=leg.seconds / leg.step,
                    accuracy=points[-1].accuracy_latents,
                )
                record.keep_partial(MEASUREMENT, curve)
                record.say(f"{stage.name} step {leg.step}: {curve.accuracy:.1%} from latents")
            spent += leg.seconds
    return curve


def read_batches(sizes: Sizes, config: Config) -> list[list[Batch]]:
    """Pack batches of every stage in several processes.

    Training cycles through them, since a single process packs batches more slowly than an
    accelerator reads them.
    """
    if sizes.tiny:
        return [pack_batches(config, stage, 0, 4) for stage in config.stages]
    workers = min(MAX_PACKING_PROCESSES, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_leave_devices) as pool:
        packing = [
            [
                pool.submit(pack_batches, config, stage, seed, BATCHES_PER_PROCESS)
                for seed in range(workers)
            ]
            for stage in config.stages
        ]
        return [[batch for future in futures for batch in future.result()] for futures in packing]


def _leave_devices():
    os.environ["JAX_PLATFORMS"] = "cpu"


def pack_batches(config: Config, stage: StageConfig, seed: int, count: int) -> list[Batch]:
    config = replace(config, data=replace(config.data, seed=seed))
    tokenizer = Tokenizer.load(Path(config.data.directory) / "tokenizer")
    return list(islice(PackedBatches(StageData(config, stage, tokenizer).mix_streams()), count))


def compile_step(config: Config, stage: StageConfig, mesh: Mesh) -> Callable[..., Any]:
    """Compile the training step of a stage."""
    room = row_budget(config, stage)
    windows = (room.windows, room.window_length, room.window_latents)
    batch = empty_batch(
        config.data.batch_rows, room.positions, empty_windows(config.data.batch_rows, *windows)
    )
    step = jax.jit(partial(train_step, config=config, stage=stage), donate_argnums=0)
    with jax.set_mesh(mesh):
        return step.lower(abstract_state(config, stage, mesh), batch).compile()


def choose_config(sizes: Sizes, work: Path) -> Config:
    """Return the config in configs/accelerator.py, or a tiny one, with its data in `work`."""
    config = settings.config()
    data = replace(config.data, directory=str(work / "data"))
    if not sizes.tiny:
        return replace(config, data=data)
    shape = {"vocab": 512, "width": 32, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp": 64}
    towers = [replace(settings.tower(layers), **shape) for layers in (1, 2)]
    model = replace(
        config.model,
        encoder=towers[0],
        decoder=towers[1],
        compression=CompressionConfig(ratio=4, window=64, pooling="concat"),
        dtype="float32",
        remat="none",
    )
    run = replace(config.run, validation_examples=4)
    return replace(
        config, model=model, data=replace(data, batch_rows=2, row_positions=256), run=run
    )


@dataclass(frozen=True)
class Leg:
    """State of training at a validation."""

    state: TrainState
    step: int  # within the stage
    seconds: float  # spent in the steps of the stage


def train(
    step: Callable[..., Any],
    state: TrainState,
    batches: Iterator[Batch],
    max_steps: int,
    total: float,
) -> Iterator[Leg]:
    """Train for `total` seconds, validations included, or `max_steps`; yield a leg at intervals."""
    started, number, seconds = time.time(), 0, 0.0
    every = max(1.0, total / VALIDATIONS_PER_STAGE)
    while True:
        before = time.time()
        end = min(before + every, started + total)
        while number < max_steps and (number == 0 or time.time() < end):
            state, metrics = step(state, next(batches))
            number += 1
            jax.block_until_ready(metrics)
        seconds += time.time() - before
        yield Leg(state, number, seconds)
        if number == max_steps or time.time() + every / 2 > started + total:
            return


def validate_leg(validate: Validation, leg: Leg, stage: StageConfig, spent: float) -> Point:
    """Return the accuracies on held-out passages in every view."""
    views = validate(leg.state.params)[STREAM]
    latents, text, nothing = (views[view].accuracy for view in ("latents", "text", "nothing"))
    minutes = (spent + leg.seconds) / 60
    return Point(minutes, stage.name, leg.step, latents, text, nothing, views["latents"].loss)
