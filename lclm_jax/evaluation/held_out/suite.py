"""The evaluation of a trained model that reports show: accuracy, loss, cost and samples."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lclm_jax.config import Config, ModelConfig
from lclm_jax.costs.work import compressed_cost, uncompressed_cost
from lclm_jax.evaluation.held_out.evaluator import EvaluationConfig, Evaluator
from lclm_jax.files.atomic import write_whole
from lclm_jax.files.reading import read_json
from lclm_jax.files.run_layout import EVALUATION
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.progress import track

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
    model: LanguageModel, config: Config, settings: EvaluationConfig, published: ModelConfig
) -> dict[str, Any]:
    """Evaluate a model on held-out documents, with every figure that a report shows.

    `published` is the model whose reading cost stands beside this one's. Raises ConfigError unless
    the config bounds the length of reconstructed passages.
    """
    evaluation = Evaluator(model, config.data, track).evaluate(settings)
    costs = {
        "this model": reading_costs(model.config, CONTEXT_LENGTHS),
        "published 0.6B + 4B, ratio 16": reading_costs(published, PUBLISHED_CONTEXT_LENGTHS),
    }
    return evaluation.to_dict() | {"cost": costs}


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
