"""The lclm_jax side of the comparison with PyTorch."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from launch.bench.accelerator.comparison import (
    DECODE,
    ENCODE,
    FIRST_TOKEN,
    TRAIN,
    Inputs,
    Task,
    case_number,
    make_inputs,
    write_outputs,
)
from launch.bench.accelerator.first_token import make_model
from launch.bench.accelerator.inference import decode
from launch.bench.accelerator.record import Record, read_results
from launch.bench.accelerator.sizes import Sizes
from lclm_jax.evaluation.first_token import compress, prefill
from lclm_jax.evaluation.timing import middle, repeat, seconds_of
from lclm_jax.inference.language_model import LanguageModel

DECODING_ROUNDS = 5


def run_serving(sizes: Sizes, record: Record, exchange: Path):
    """Measure encoding, first token and decoding."""
    tasks = {ENCODE: encode, FIRST_TOKEN: first_token, DECODE: answer}
    inputs = make_inputs(sizes)
    if tasks.keys() - record.measurements.keys():
        model = make_model(sizes.model)
        for name, task in tasks.items():
            record.measure(name, partial(task, model, inputs, exchange, sizes.room))


def run_training(sizes: Sizes, record: Record, exchange: Path, results: Path):
    record.measure(TRAIN, partial(training_step, case_number(sizes), exchange, results))


def encode(model: LanguageModel, inputs: Inputs, exchange: Path, _: int) -> Task:
    """Time the encoding of as many windows as the library reads at once."""
    vectors = np.asarray(compress(model, inputs.full).vectors, np.float32)
    write_outputs(exchange, "ours", {ENCODE: vectors})
    rounds = repeat(lambda: compress(model, inputs.full))
    return Task(middle(rounds), rounds)


def first_token(model: LanguageModel, inputs: Inputs, exchange: Path, room: int) -> Task:
    """Time compressing the context and reading the prompt."""

    def read() -> Any:
        return prefill(model, compress(model, inputs.context), inputs.question, room)

    write_outputs(exchange, "ours", {FIRST_TOKEN: np.asarray(read().logits, np.float32)})
    rounds = repeat(read)
    return Task(middle(rounds), rounds)


def answer(model: LanguageModel, inputs: Inputs, exchange: Path, room: int) -> Task:
    """Time decoding after the prompt, which is read anew for every round."""
    steps = inputs.work.answer
    state = prefill(model, compress(model, inputs.context), inputs.question, room)
    write_outputs(exchange, "ours", {DECODE: decode(model, state, steps)})
    rounds = []
    for _ in range(DECODING_ROUNDS):
        state = prefill(model, compress(model, inputs.context), inputs.question, room)
        rounds.append(seconds_of(lambda state=state: decode(model, state, steps)))
    return Task(middle(rounds), rounds)


def training_step(number: int, exchange: Path, results: Path) -> Task:
    """Return the fastest step of the section `training`, which reads the same row.

    Raises FileNotFoundError if no step was measured.
    """
    file = results / f"training.{number}.json"
    steps = read_results(file)["measurements"].values()
    timed = [step for step in steps if step["seconds"]]
    if not timed:
        raise FileNotFoundError(
            f"{file}: expected the seconds of a training step, found none; "
            "measure it first: --sections training,beside_torch"
        )
    best = min(timed, key=lambda step: step["seconds"])
    write_outputs(exchange, "ours", {TRAIN: np.asarray(best["losses"][0], np.float32)})
    return Task(best["seconds"], [], f"remat {best['remat']}, measured by training.{number}")
