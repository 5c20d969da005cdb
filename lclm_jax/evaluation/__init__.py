"""Evaluation of models: on held-out documents, and on questions about long texts."""

from lclm_jax.evaluation.held_out import EvaluationConfig, Evaluator
from lclm_jax.evaluation.statistics import Proportion

__all__ = ["EvaluationConfig", "Evaluator", "Proportion"]
