"""Evaluation of trained models on documents they have never seen."""

from lclm_jax.evaluation.held_out.evaluator import EvaluationConfig, Evaluator
from lclm_jax.evaluation.held_out.results import (
    Continuation,
    Evaluation,
    PassageScore,
    Questions,
    Reconstruction,
    Samples,
)
from lclm_jax.evaluation.statistics import Proportion

__all__ = [
    "Continuation",
    "Evaluation",
    "EvaluationConfig",
    "Evaluator",
    "PassageScore",
    "Proportion",
    "Questions",
    "Reconstruction",
    "Samples",
]
