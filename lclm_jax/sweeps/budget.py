"""The cost of a cell's training: model FLOPs, and hours on a slice."""

from lclm_jax.config import Config, StageConfig
from lclm_jax.costs.chips import Slice
from lclm_jax.costs.work import training_flops
from lclm_jax.training.state import trained_parts


def stage_flops(config: Config, stage: StageConfig) -> float:
    """Count the model FLOPs of training a stage, as full rows.

    Where no context is compressed, the encoder and the adapter take none.
    """
    compresses = stage.compress and any(stream.plain_contexts < 1 for stream in stage.streams)
    windows = (stage.row_windows or config.data.row_windows) if compresses else 0
    parts = trained_parts(config, stage)
    row = training_flops(config.model, config.data.row_positions, windows, parts)
    return stage.steps * config.data.batch_rows * row.total


def run_flops(config: Config) -> float:
    """Count the model FLOPs of training all stages."""
    return sum(stage_flops(config, stage) for stage in config.stages)


def chip_hours(flops: float, target: Slice, mfu: float) -> float:
    """Return the hours of a chip that training takes at a share of its peak."""
    return flops / (target.chip.peak_flops * mfu) / 3600
