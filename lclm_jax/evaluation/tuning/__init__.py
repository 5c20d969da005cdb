"""Choice of a setting of compression by one's own questions, and of whether to compress at all."""

from lclm_jax.evaluation.tuning.grid import Grid
from lclm_jax.evaluation.tuning.outcomes import Outcome
from lclm_jax.evaluation.tuning.recommendation import DEFAULT_MARGIN, Recommendation, recommend
from lclm_jax.evaluation.tuning.sweep import Tuning, tune

__all__ = ["DEFAULT_MARGIN", "Grid", "Outcome", "Recommendation", "Tuning", "recommend", "tune"]
