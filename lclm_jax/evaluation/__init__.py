"""Evaluation of models: on held-out documents, and on questions about long texts."""

from lclm_jax.evaluation.held_out import EvaluationConfig, Evaluator
from lclm_jax.evaluation.results import Results
from lclm_jax.evaluation.samples import Sample
from lclm_jax.evaluation.statistics import Difference, Mean, Proportion, paired_difference

__all__ = [
    "Difference",
    "EvaluationConfig",
    "Evaluator",
    "Mean",
    "Proportion",
    "Results",
    "Sample",
    "paired_difference",
]
