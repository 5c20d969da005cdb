"""How well a small model writes back what it read as latents, by the minutes it was trained."""

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

NAME = "reconstruction"  # of the measurement
LOOKS = 8  # at held-out text in every stage
LANGUAGE = 0.35  # part of the time in which the decoder learns in plain text
WORKERS = 8  # processes that pack batches
BATCHES = 12  # of every stage, that each of them packs
RESERVE = 4.0  # seconds at the end for the last look
MODULES = 40  # that the tiny run reads
TINY_SECONDS = 4.0
STREAM = "reconstruction/docs"


@dataclass(frozen=True)
class Point:
    """One look at held-out text."""

    minutes: float  # of training, compilation and looks left out
    stage: str
    step: int
    accuracy_latents: float  # share of tokens that are the best guess, given those before
    accuracy_text: float
    accuracy_nothing: float
    loss: float  # from latents


@dataclass(frozen=True)
class Curve(Result):
    parameters: int
    seconds_per_step: float  # of the last stage
    accuracy: float  # from latents, at the end
    points: list[Point]


def run(sizes: Sizes, record: Record, work: Path):
    record.measure(NAME, partial(learn, sizes, record, work), 10.0)


def learn(sizes: Sizes, record: Record, work: Path) -> Curve:
    """Trains until the part's time is over; the curve is kept after every look.

    The programs are compiled while the text is prepared.
    """
    config, mesh = choose_config(sizes, work), one_device()
    with ThreadPoolExecutor(len(config.stages)) as threads:
        compiling = [threads.submit(compile_step, config, stage, mesh) for stage in config.stages]
        settings.prepare(config, MODULES if sizes.tiny else None)
        batches = read_batches(sizes, config)
    steps = [one.result() for one in compiling]
    record.say("learning: text is prepared and programs are compiled")
    tokenizer = Tokenizer.load(Path(config.data.directory) / "tokenizer")
    total = min(record.left() - RESERVE, TINY_SECONDS if sizes.tiny else 3600.0)
    params, points, spent = init_params(config.model, mesh, config.run.seed), [], 0.0
    curve = Curve(count_parameters(config.model), 0.0, 0.0, points)
    shares = (LANGUAGE, 1 - LANGUAGE)
    with jax.set_mesh(mesh):
        for stage, step, some, share in zip(config.stages, steps, batches, shares, strict=True):
            validate = Validation(StageData(config, stage, tokenizer), mesh)
            begin = begin_stage(params, config, stage, mesh)
            for leg in train(step, begin, cycle(some), stage.steps, share * total):
                params = leg.state.params
                points.append(look(validate, leg, stage, spent))
                curve = replace(
                    curve,
                    seconds_per_step=leg.seconds / leg.step,
                    accuracy=points[-1].accuracy_latents,
                )
                record.keep_partial(NAME, curve)
                record.say(f"{stage.name} step {leg.step}: {curve.accuracy:.1%} from latents")
            spent += leg.seconds
    return curve


def read_batches(sizes: Sizes, config: Config) -> list[list[Batch]]:
    """Packed batches of every stage, which are read again and again: one process would pack them
    more slowly than an accelerator reads them."""
    if sizes.tiny:
        return [pack_batches(config, stage, 0, 4) for stage in config.stages]
    workers = min(WORKERS, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_leave_devices) as pool:
        packing = [
            [pool.submit(pack_batches, config, stage, seed, BATCHES) for seed in range(workers)]
            for stage in config.stages
        ]
        return [[batch for one in some for batch in one.result()] for some in packing]


def _leave_devices():
    os.environ["JAX_PLATFORMS"] = "cpu"


def pack_batches(config: Config, stage: StageConfig, seed: int, count: int) -> list[Batch]:
    config = replace(config, data=replace(config.data, seed=seed))
    tokenizer = Tokenizer.load(Path(config.data.directory) / "tokenizer")
    return list(islice(PackedBatches(StageData(config, stage, tokenizer).mix_streams()), count))


def compile_step(config: Config, stage: StageConfig, mesh: Mesh) -> Callable[..., Any]:
    """The step of a stage as a program."""
    room = row_budget(config, stage)
    windows = (room.windows, room.window_length, room.window_latents)
    batch = empty_batch(
        config.data.batch_rows, room.positions, empty_windows(config.data.batch_rows, *windows)
    )
    step = jax.jit(partial(train_step, config=config, stage=stage), donate_argnums=0)
    with jax.set_mesh(mesh):
        return step.lower(abstract_state(config, stage, mesh), batch).compile()


def choose_config(sizes: Sizes, work: Path) -> Config:
    """The config in configs/accelerator.py, with its data in `work`; or a tiny one."""
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
    """Where training has come to between two looks."""

    state: TrainState
    step: int  # of the stage
    seconds: float  # spent in its steps


def train(
    step: Callable[..., Any], state: TrainState, batches: Iterator[Batch], most: int, total: float
) -> Iterator[Leg]:
    """Steps for so many seconds, looks included, or so many steps; a leg now and then."""
    started, number, seconds = time.time(), 0, 0.0
    every = max(1.0, total / LOOKS)
    while True:
        before = time.time()
        end = min(before + every, started + total)
        while number < most and (number == 0 or time.time() < end):
            state, metrics = step(state, next(batches))
            number += 1
            jax.block_until_ready(metrics)
        seconds += time.time() - before
        yield Leg(state, number, seconds)
        if number == most or time.time() + every / 2 > started + total:
            return


def look(validate: Validation, leg: Leg, stage: StageConfig, spent: float) -> Point:
    """At held-out passages, in every view."""
    views = validate(leg.state.params)[STREAM]
    accuracies = [views[view].accuracy for view in ("latents", "text", "nothing")]
    minutes = (spent + leg.seconds) / 60
    return Point(minutes, stage.name, leg.step, *accuracies, views["latents"].loss)
