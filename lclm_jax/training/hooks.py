"""The hooks of a stage, which the training loop calls after every step, in their order."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from lclm_jax.distributed.processes import is_first
from lclm_jax.progress import progress_bar
from lclm_jax.training.clock import StepClock
from lclm_jax.training.metrics import MetricsLog, MetricsReader
from lclm_jax.training.non_finite import NonFiniteWatch, give_up
from lclm_jax.training.profiler import trace_on_request
from lclm_jax.training.stage import StageRun
from lclm_jax.training.step_info import Hook, StepInfo
from lclm_jax.training.validation import validate_every


class Interrupted(KeyboardInterrupt):
    """A requested stop: training has saved its position."""


@contextmanager
def stage_hooks(
    stage_run: StageRun, clock: StepClock, done: int, more: Sequence[Hook]
) -> Iterator[Sequence[Hook]]:
    """Yield the hooks of a stage in their order, `more` of them before the step is saved."""
    run, stage = stage_run.run, stage_run.stage
    log, watch = MetricsLog(stage_run), NonFiniteWatch()
    metrics = MetricsReader(log, watch)
    with (
        progress_bar(stage.name, stage.steps, done, shown=is_first()) as show,
        trace_on_request(stage_run, done) as (end_trace, begin_trace),
    ):
        yield (
            metrics,
            lambda info: show(info.step, log.summary),
            end_trace,
            lambda _: run.checkpoints.check(),
            *more,
            give_up(watch, metrics.flush),
            validate_every(stage_run, clock, metrics.flush),
            save_every(stage_run, clock, metrics.flush),
            stop_on_request,
            lambda _: run.report_progress(),
            begin_trace,
        )
    log.log_left_out()


def save_every(stage_run: StageRun, clock: StepClock, flush: Callable[[], None]) -> Hook:
    """Return a hook that saves every `run.save_every` steps, at the last one and on a stop."""

    def hook(info: StepInfo):
        if info.stopping or info.due(stage_run.run.config.run.save_every):
            flush()
            with clock.outside():
                stage_run.save(info.step, info.state)

    return hook


def stop_on_request(info: StepInfo):
    """Raise Interrupted once the checkpoint is complete, if a stop was requested."""
    if not info.stopping:
        return
    run, stage = info.stage_run.run, info.stage_run.stage
    run.checkpoints.wait()
    info.stage_run.event("stopped", info.step, reason=run.stop.reason)
    raise Interrupted(
        f"stopped in stage {stage.name} after step {info.step} of {stage.steps}; "
        "saved, run again to continue"
    )
