"""Training: one loop for every stage, from adapter warm-up to supervised fine-tuning.

`train(config)` starts a run, continues it after any interruption, or returns at once when all
stages are done.
"""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import jax

from lclm_jax.checkpoint.steps import load_params
from lclm_jax.config import Config
from lclm_jax.distributed.processes import once
from lclm_jax.model.params import abstract_params
from lclm_jax.training.clock import StepClock
from lclm_jax.training.hooks import stage_hooks
from lclm_jax.training.run import (
    first_params,
    log_damaged,
    log_resumed,
    open_run,
    read_position,
    stages_to_run,
)
from lclm_jax.training.stage import StageRun, open_stage, restore_state
from lclm_jax.training.state import TrainState, begin_stage
from lclm_jax.training.step_info import Hook, StepInfo
from lclm_jax.version import code_version


def train(config: Config, only: str | None = None, hooks: Sequence[Hook] = ()) -> Path:
    """Run every stage that is not done; return the run's directory, a complete checkpoint.

    With `only`, a stage's name or its index from 0, no other stage is trained; the stage before it
    must be complete, unless the run is new. The hooks are called after every step, before it is
    validated and saved. Ctrl-C, SIGTERM or a maintenance notice saves and raises `Interrupted`;
    another call continues from there, data included.

    In a run of several processes all call this. They share the directories of run and data, and a
    request to one of them stops all.

    Raises NotFinite after `run.max_skipped_steps` non-finite steps in a row; `training.replay`
    examines them.
    """
    with open_run(config) as run:
        position = read_position(run)
        once("write the files of the run", run.write_files)
        run.checkpoints.check_writable()
        log_damaged(run, position)
        stages = stages_to_run(config, only, position)
        params = first_params(run) if position is None else {}
        for stage in stages:
            if position is not None and position["stage_step"] >= stage.steps:
                # A complete stage: its examples and moments are no longer needed.
                params = load_params(run.directory, abstract_params(config.model, run.mesh))
                log_resumed(run, stage, position)
            else:
                stage_run = open_stage(run, stage, position)
                if position is None:
                    state = begin_stage(params, config, stage, run.mesh)
                    event = "started" if stage is stages[0] else "entered"
                    stage_run.event(event, 0, code=code_version())
                else:
                    state = restore_state(run, stage)
                    log_resumed(run, stage, position)
                params = run_stage(stage_run, state, hooks).params
            position = None
        return run.directory


def run_stage(stage_run: StageRun, state: TrainState, hooks: Sequence[Hook] = ()) -> TrainState:
    """Train a stage from the state's step to its end, and return the last state.

    The host is never more than one step ahead of the devices.
    """
    run, stage, clock, done = stage_run.run, stage_run.stage, StepClock(), int(state.step)
    run.report_progress()
    batches = stage_run.global_batches(clock)
    first = next(batches)
    with clock.outside():
        train_step = stage_run.compile_step(state, first[1])
    batches, metrics = chain([first], batches), None
    del first  # or its arrays stay on the devices until the stage ends
    with stage_hooks(stage_run, clock, done, hooks) as all_hooks:
        steps = range(done + 1, stage.steps + 1)
        for step, (position, batch) in zip(steps, batches):  # noqa: B905
            before = metrics
            state, metrics = train_step(state, batch)
            jax.block_until_ready(before)
            seconds, waited = clock.read()
            stopping = run.stop.agreed(run.mesh)
            info = StepInfo(stage_run, step, state, metrics, position, seconds, waited, stopping)
            for hook in all_hooks:
                hook(info)
    return state
