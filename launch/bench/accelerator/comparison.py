"""Inputs of the comparison with PyTorch, and the files that carry results between processes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from launch.bench.accelerator.record import Result
from launch.bench.accelerator.rows import small_tokenizer, training_row
from launch.bench.accelerator.sizes import Sizes, TrainingCase
from launch.bench.work import Work
from lclm_jax.data.loading import RowBudget, assemble, fill_row
from lclm_jax.data.records import Context, Plain, Span, lay_out
from lclm_jax.evaluation.first_token import random_tokens
from lclm_jax.inference.compressor import WINDOWS_AT_ONCE

ENCODE, FIRST_TOKEN, DECODE, TRAIN = "encode", "first token", "decode", "training step"
# Largest relative difference, ||torch - lclm_jax|| / ||lclm_jax||. float32 differs by the order of
# sums, bfloat16 by rounding in dozens of layers.
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.1}


@dataclass(frozen=True)
class Task(Result):
    """Median seconds of a task."""

    seconds: float
    rounds: list[float]
    note: str = ""


@dataclass(frozen=True)
class Inputs:
    """Arrays that each side makes for itself from the same seed."""

    work: Work
    case: TrainingCase  # the model of the training step
    full: np.ndarray  # tokens of the windows to encode
    context: np.ndarray  # tokens of the prompt's context
    question: np.ndarray


def case_number(sizes: Sizes) -> int:
    """Return the number of the case to compare: the smaller decoder, all components trained."""
    return min(1, len(sizes.cases) - 1)


def make_inputs(sizes: Sizes) -> Inputs:
    model, tokenizer, case = sizes.model, small_tokenizer(), sizes.cases[case_number(sizes)]
    window = model.compression.window
    full = random_tokens(model, WINDOWS_AT_ONCE * window, seed=2)
    context, question = random_tokens(model, sizes.middle), random_tokens(model, sizes.question, 1)

    def windows(tokens: np.ndarray):
        count = len(tokens) // window
        budget = RowBudget.for_model(model, len(tokens), count)
        return assemble([fill_row(budget, [lay_out([Context(tokens)], model, tokenizer.memory)])])

    prompt: list[Span] = [Context(context), Plain(question)]
    config = case.config(sizes.positions, sizes.windows)
    work = Work(
        config,
        training_row(config, tokenizer),
        windows(full).windows,
        prompt,
        windows(context).windows,
        lay_out(prompt, model, tokenizer.memory),
        sizes.answer,
    )
    return Inputs(work, case, full, context, question)


def write_outputs(directory: Path, side: str, outputs: dict[str, np.ndarray]):
    """Write the results of a side for the other process."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"{side}.npz"
    known = dict(np.load(file)) if file.exists() else {}
    np.savez(file, **{**known, **outputs})


def read_outputs(directory: Path, side: str) -> dict[str, np.ndarray]:
    file = directory / f"{side}.npz"
    if not file.exists():
        raise FileNotFoundError(
            f"{file}: expected the results of the side {side!r}, found no file; "
            "run its part first: --sections beside_torch"
        )
    return dict(np.load(file))
