"""The evaluation of a trained model that reports show: accuracy, loss, cost and samples."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from lclm_jax.config import Config, ConfigError, ModelConfig
from lclm_jax.costs.work import compressed_cost, uncompressed_cost
from lclm_jax.evaluation.held_out import (
    Tests,
    continuation_loss,
    continuation_samples,
    question_accuracy,
    reconstruction_accuracy,
    reconstruction_samples,
)
from lclm_jax.files.atomic import write_whole
from lclm_jax.files.reading import read_json
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.progress import track

EVALUATION = "evaluation.json"  # the file in a run directory
MAX_PASSAGES = 100  # held-out passages of each source and length
SAMPLES_PER_SOURCE = 4
MAX_QUESTION_SAMPLES = 8
CONTEXT_LENGTHS = [2**k for k in range(6, 14)]  # tokens, for the cost of the evaluated model
PUBLISHED_CONTEXT_LENGTHS = [2**k for k in range(10, 21)]


def is_evaluated(directory: Path, step: int | None) -> bool:
    """Return whether a run directory has the evaluation of this step."""
    file = directory / EVALUATION
    return file.exists() and read_json(file).get("step") == step


def write_evaluation(directory: Path, results: dict[str, Any]):
    """Write results to `evaluation.json` in a run directory."""
    write_whole(directory / EVALUATION, json.dumps(results, indent=2))


def evaluate(
    model: LanguageModel, config: Config, tests: Tests, published: ModelConfig
) -> dict[str, Any]:
    """Evaluate a model on held-out documents, with every figure that a report shows.

    `published` is the model whose reading cost stands beside this one's. Raises ConfigError unless
    the config bounds the length of reconstructed passages.
    """
    return {
        "parameters": {
            name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in model.params.items()
        },
        "ratio": model.config.compression.ratio,
        "window": model.config.compression.window,
        **_measure(model, config, tests),
        "cost": {
            "this model": reading_costs(model.config, CONTEXT_LENGTHS),
            "published 0.6B + 4B, ratio 16": reading_costs(published, PUBLISHED_CONTEXT_LENGTHS),
        },
    }


def _measure(model: LanguageModel, config: Config, tests: Tests) -> dict[str, Any]:
    """Measure reconstruction, continuation and questions, with samples of each."""
    directory, data = config.data.directory, config.data
    reconstruction = [
        reconstruction_accuracy(model, directory, source, data, lengths, MAX_PASSAGES, track)
        for source in tests.passages
        for lengths in tests.lengths or _default_lengths(config)
    ]

    questions, answers = None, []
    if tests.questions:
        questions, answers = question_accuracy(
            model, directory, tests.questions, data, tests.asked, track
        )

    continuation = [
        continuation_loss(model, directory, source, data, MAX_PASSAGES, track)
        for source in tests.continued
    ]
    return {
        "reconstruction": reconstruction,
        "continuation": continuation,
        "questions": questions,
        "samples": {
            "reconstruction": [
                sample
                for source in tests.passages
                for sample in reconstruction_samples(
                    model, directory, source, data, SAMPLES_PER_SOURCE
                )
            ],
            "continuation": [
                sample
                for source in tests.continued[:1]
                for sample in continuation_samples(
                    model, directory, source, data, SAMPLES_PER_SOURCE
                )
            ],
            "questions": answers[:MAX_QUESTION_SAMPLES],
        },
    }


def _default_lengths(config: Config) -> tuple[tuple[int, int], ...]:
    """Return half the shortest passage that was trained on, and the trained range, in tokens."""
    if config.data.reconstruction_length is None:
        raise ConfigError(
            "expected passages of bounded length, got data.reconstruction_length=None; set it, or name "
            "the lengths of the evaluation"
        )
    shortest, longest = config.data.reconstruction_length
    return (shortest // 2, shortest // 2), (shortest, longest)


def reading_costs(config: ModelConfig, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """Return the cost of contexts of these lengths in tokens, read as text and as latents."""
    return [
        {
            "tokens": length,
            "plain": asdict(uncompressed_cost(length, config)),
            "compressed": asdict(compressed_cost(length, config)),
        }
        for length in lengths
    ]
