"""Scoring: the losses of a model on records, for training, validation and evaluation alike."""

from lclm_jax.scoring.losses import sum_by_group, token_losses
from lclm_jax.scoring.packing import pack_full_rows, pack_single_records
from lclm_jax.scoring.score import Score, Scorer, score

__all__ = [
    "Score",
    "Scorer",
    "pack_full_rows",
    "pack_single_records",
    "score",
    "sum_by_group",
    "token_losses",
]
