"""How well a small model writes back what it read as latents, by the minutes it was trained."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax

from configs import accelerator as settings
from launch.bench.accelerator.record import Record, Result
from launch.bench.accelerator.report import report
from launch.bench.accelerator.sizes import Sizes
from lclm_jax.config import CompressionConfig, Config, StageConfig
from lclm_jax.data.streams import stage_batches, stage_order
from lclm_jax.data.tokens import Tokenizer
from lclm_jax.sharding import one_device
from lclm_jax.state import TrainState, begin_stage, count_parameters, init_params
from lclm_jax.step import train_step
from lclm_jax.validation import Validation

LOOKS = 12  # at held-out text
LANGUAGE = 0.35  # part of the time in which the decoder learns in plain text
RESERVE = 4.0  # seconds at the end for the last look
MODULES = 40  # that the tiny run reads
TINY_SECONDS = 12.0
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
    record.measure("reconstruction", partial(learn, sizes, record, work), 10.0)


def learn(sizes: Sizes, record: Record, work: Path) -> Curve:
    """Trains until the part's time is over. The curve is kept after every look."""
    config = choose_config(sizes, work)
    settings.prepare(config, MODULES if sizes.tiny else None)
    tokenizer = Tokenizer.load(Path(config.data.directory) / "tokenizer")
    mesh, points, seconds = one_device(), [], 0.0
    end = time.time() + min(record.left() - RESERVE, TINY_SECONDS if sizes.tiny else 3600.0)
    total = end - time.time()
    params, spent = init_params(config.model, mesh, config.run.seed), 0.0
    with jax.set_mesh(mesh):
        for stage in config.stages:
            last = stage is config.stages[-1]
            until = end if last else time.time() + LANGUAGE * total
            begin = begin_stage(params, config, stage, mesh)
            validate = Validation(config, stage, tokenizer, mesh)
            state = begin
            for state, step, seconds in train(config, stage, begin, tokenizer, until):
                look = point(validate, state, stage, step, spent + seconds)
                points.append(look)
                report(f"{stage.name} step {step}: {look.accuracy_latents:.1%} from latents")
            spent += seconds
            params = state.params
    last_step = max(1, points[-1].step)
    accuracy = points[-1].accuracy_latents
    return Curve(count_parameters(config.model), seconds / last_step, accuracy, points)


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
    )
    run = replace(config.run, validation_examples=4)
    return replace(config, model=model, data=replace(data, rows=2, positions=256), run=run)


def train(
    config: Config, stage: StageConfig, state: TrainState, tokenizer: Tokenizer, until: float
) -> Iterator[tuple[TrainState, int, float]]:
    """Steps until that time; yields now and then the state, its step and the seconds trained."""
    batches = iter(stage_batches(stage_order(config, stage, tokenizer), config))
    batch = next(batches)
    step = jax.jit(partial(train_step, config=config, stage=stage), donate_argnums=0)
    compiled = step.lower(state, batch).compile()
    begun, every, number, seconds = time.time(), 0.0, 0, 0.0
    every = max(1.0, (until - begun) / LOOKS * len(config.stages))
    while number < stage.steps:
        before = time.time()
        while number < stage.steps and time.time() < min(before + every, until):
            state, metrics = compiled(state, batch)
            number += 1
            batch = next(batches)
            jax.block_until_ready(metrics)
        if number == 0:  # the time was over before the first step
            state, _ = compiled(state, batch)
            number = 1
        seconds += time.time() - before
        yield state, number, seconds
        if time.time() + every / 2 > until:
            return


def point(
    validate: Validation, state: TrainState, stage: StageConfig, step: int, seconds: float
) -> Point:
    views: dict[str, Any] = validate(state.params)[STREAM]
    accuracies = [views[view]["accuracy"] for view in ("latents", "text", "nothing")]
    return Point(seconds / 60, stage.name, step, *accuracies, views["latents"]["loss"])
