"""Our side of the comparison with PyTorch."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from launch.bench.accelerator.comparison import (
    DECODE,
    ENCODE,
    FIRST_TOKEN,
    TRAIN,
    Inputs,
    Task,
    make_inputs,
    write_outputs,
)
from launch.bench.accelerator.first_token import make_model
from launch.bench.accelerator.inference import compress, decode, prefill
from launch.bench.accelerator.record import Record
from launch.bench.accelerator.sizes import Sizes
from launch.bench.accelerator.timing import middle, repeat, seconds_of
from launch.bench.accelerator.weights import random_params
from lclm_jax.language_model import LanguageModel
from lclm_jax.sharding import one_device
from lclm_jax.state import init_state
from lclm_jax.step import train_step

WARM_UPS = 2


def run(sizes: Sizes, record: Record, exchange: Path):
    tasks = {ENCODE: encode, FIRST_TOKEN: first_token, DECODE: answer}
    inputs = make_inputs(sizes)
    if tasks.keys() - record.measurements.keys():
        model = make_model(sizes.model)
        for name, task in tasks.items():
            record.measure(name, partial(task, model, inputs, exchange))
        del model
    remats = sizes.remats[::-1]
    record.measure(TRAIN, partial(train, inputs, exchange, remats), 5.0)


def encode(model: LanguageModel, inputs: Inputs, exchange: Path) -> Task:
    """Latents of as many windows as are read at once."""
    write_outputs(exchange, "ours", {ENCODE: np.float32(compress(model, inputs.full).vectors)})
    rounds = repeat(lambda: compress(model, inputs.full).vectors)
    return Task(middle(rounds), rounds)


def first_token(model: LanguageModel, inputs: Inputs, exchange: Path) -> Task:
    def read() -> Any:
        return prefill(model, compress(model, inputs.context), inputs.question, inputs.work.answer)

    write_outputs(exchange, "ours", {FIRST_TOKEN: np.float32(read().scores)})
    rounds = repeat(read)
    return Task(middle(rounds), rounds)


def answer(model: LanguageModel, inputs: Inputs, exchange: Path) -> Task:
    steps = inputs.work.answer
    state = prefill(model, compress(model, inputs.context), inputs.question, steps)
    write_outputs(exchange, "ours", {DECODE: decode(model, state, steps)})
    rounds = repeat(lambda: decode(model, state, steps), least=3)
    return Task(middle(rounds), rounds)


def train(inputs: Inputs, exchange: Path, remats: tuple[str, ...]) -> Task:
    """Steps on one packed row, layers recomputed only if memory does not suffice otherwise."""
    for remat in remats:
        try:
            return _train(inputs, exchange, remat)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or remat == remats[-1]:
                raise
    raise AssertionError("the loop returns or raises")


def _train(inputs: Inputs, exchange: Path, remat: str) -> Task:
    config, mesh = inputs.work.config, one_device()
    config = replace(config, model=replace(config.model, remat=remat))
    (stage,) = config.stages
    state = init_state(random_params(config.model, "float32", mesh), stage, config.optimizer)
    step = jax.jit(partial(train_step, config=config, stage=stage), donate_argnums=0)
    losses: list[Any] = []

    def once() -> Any:
        nonlocal state
        with jax.set_mesh(mesh):
            state, metrics = step(state, inputs.work.batch)
        losses.append(metrics["loss"])
        return state

    for _ in range(WARM_UPS):
        seconds_of(once)
    rounds = repeat(once, least=5, most=15)
    write_outputs(exchange, "ours", {TRAIN: np.float32(losses[0])})
    return Task(middle(rounds), rounds, f"remat {remat}")
