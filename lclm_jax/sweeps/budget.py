"""The cost of a cell's training: model FLOPs, and hours on a slice."""

from lclm_jax.config import Config
from lclm_jax.costs.chips import Slice
from lclm_jax.training.state import step_flops


def run_flops(config: Config) -> float:
    """Count the model FLOPs of training all stages, as full rows."""
    return sum(stage.steps * step_flops(config, stage).total for stage in config.stages)


def chip_hours(flops: float, target: Slice, mfu: float) -> float:
    """Return the hours of a chip that training takes at a share of its peak."""
    return flops / (target.chip.peak_flops * mfu) / 3600
