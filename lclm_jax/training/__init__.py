"""Training: the loop over stages, the update, and everything a run records."""

from lclm_jax.training.hooks import Hook, StepInfo
from lclm_jax.training.loop import Interrupted, train
from lclm_jax.training.non_finite import NotFinite

__all__ = ["Hook", "Interrupted", "NotFinite", "StepInfo", "train"]
