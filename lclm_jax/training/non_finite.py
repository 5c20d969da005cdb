"""Steps whose loss or gradients are not finite: reported, and after too many the run gives up."""

import logging
from collections.abc import Callable

from lclm_jax.data.loading import batch_at, batch_origins
from lclm_jax.distributed.processes import once
from lclm_jax.errors import UserError
from lclm_jax.training.replay import keep_batch
from lclm_jax.training.stage import DataPosition
from lclm_jax.training.step import Metrics
from lclm_jax.training.step_info import StepInfo

log = logging.getLogger(__name__)


class NotFinite(UserError, ArithmeticError):
    """A loss or gradients that were not finite for too many steps in a row."""


class NonFiniteWatch:
    """A count of the non-finite steps in a row.

    Attributes:
        failing: their number.
        first: step and data position of the first of them, None without any.
    """

    def __init__(self):
        self.failing = 0
        self.first: tuple[int, DataPosition] | None = None

    def add(self, info: StepInfo, metrics: Metrics):
        """Count a step, and report it if it was skipped because of its own loss or gradients."""
        self.failing = int(metrics["failing"])
        if not self.failing:
            self.first = None
            return
        self.first = self.first or (info.step, info.data_position)
        if not metrics["finite"]:
            _report_skipped(info, metrics)


def _report_skipped(info: StepInfo, metrics: Metrics):
    stage_run = info.stage_run
    if not stage_run.run.journal.writes:
        return
    loss, norm = float(metrics["loss"]), float(metrics["gradient_norm"])
    rows = batch_origins(stage_run.mixture, dict(info.data_position))
    records = [record for row in rows for record in row]
    log.warning(
        "%s step %d was skipped: loss %s, gradient norm %s; its examples: %s",
        *(stage_run.stage.name, info.step, loss, norm, ", ".join(records)),
    )
    stage_run.event("skipped", info.step, loss=loss, gradient_norm=norm, records=records)


def give_up(watch: NonFiniteWatch, flush: Callable[[], None]) -> Callable[[StepInfo], None]:
    """Return a hook that raises NotFinite after `run.max_skipped_steps` steps in a row.

    It saves the state and the first of the failing batches. The parameters are those that the
    first failing step met: nothing has changed since.
    """

    def hook(info: StepInfo):
        stage_run = info.stage_run
        run, stage = stage_run.run, stage_run.stage
        limit = run.config.run.max_skipped_steps
        if watch.failing < limit:
            return
        flush()
        stage_run.save(info.step, info.state)
        run.checkpoints.wait()
        file = once("keep the batch", lambda: _keep_first(info, watch))
        reason = f"{limit} steps in a row were not finite"
        stage_run.event("stopped", info.step, reason=reason)
        raise NotFinite(
            f"{limit} steps in a row up to step {info.step} of stage {stage.name} had a loss or "
            "gradients that are not finite (run.max_skipped_steps); saved as they were, with the "
            f"first of the batches in {file}. "
            f"Look into it by python -m launch.replay {run.directory}"
        )

    return hook


def _keep_first(info: StepInfo, watch: NonFiniteWatch) -> str:
    """Write the first of the failing batches, and return its file."""
    assert watch.first is not None
    (step, position), stage_run = watch.first, info.stage_run
    run, stage = stage_run.run, stage_run.stage
    details = {
        "stage": stage.name,
        "step": step,
        "checkpoint": run.config.run_step(stage.name, info.step),
        "records": batch_origins(stage_run.mixture, dict(position)),
    }
    batch = batch_at(stage_run.mixture, dict(position))
    return str(keep_batch(run.directory, batch, details))
