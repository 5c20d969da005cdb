"""Training: the loop over stages, the update, and everything a run records."""

from lclm_jax.training.hooks import Interrupted
from lclm_jax.training.loop import train
from lclm_jax.training.non_finite import NotFinite
from lclm_jax.training.step_info import Hook, StepInfo

__all__ = ["Hook", "Interrupted", "NotFinite", "StepInfo", "train"]
