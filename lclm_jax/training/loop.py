"""Training: one loop for every stage, from adapter warm-up to supervised fine-tuning.

`train(config)` starts a run, continues it after any interruption, or returns at once when all
stages are done.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from lclm_jax.batch import Batch
from lclm_jax.checkpoint.model_files import check_model_files, read_model_files, write_model_files
from lclm_jax.checkpoint.steps import Checkpoints, add_checksums, load_params, set_aside_damaged
from lclm_jax.config import Config, ConfigError, StageConfig
from lclm_jax.config.values import to_dict
from lclm_jax.data.loading import (
    Mixture,
    StageData,
    batch_at,
    batch_origins,
    prefetch_batches,
)
from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.distributed.processes import check_shared, is_first, once
from lclm_jax.distributed.sharding import (
    batch_sharding,
    check_batches,
    global_batch,
    make_mesh,
    own_rows,
    replicated,
)
from lclm_jax.distributed.stopping import StopRequest, stop_requests
from lclm_jax.errors import UserError
from lclm_jax.files.atomic import write_whole
from lclm_jax.files.directories import check_path, locked
from lclm_jax.files.run_layout import CONFIG, DAMAGED, STEPS
from lclm_jax.model.params import abstract_params, flatten, init_params
from lclm_jax.progress import progress_bar
from lclm_jax.training.journal import Journal, open_journal
from lclm_jax.training.metrics import Recorder
from lclm_jax.training.profiler import Profiler
from lclm_jax.training.replay import keep_batch
from lclm_jax.training.resume import Position, changed_settings, check_position, check_sources
from lclm_jax.training.state import TrainState, abstract_state, begin_stage
from lclm_jax.training.step import train_step
from lclm_jax.training.validation import Validation, scores_to_dict
from lclm_jax.training.watchdog import watchdog
from lclm_jax.typing import Params
from lclm_jax.version import code_version

log = logging.getLogger(__name__)


class Interrupted(KeyboardInterrupt):
    """A requested stop: training has saved its position."""


class NotFinite(UserError, ArithmeticError):
    """A loss or gradients that were not finite for too many steps in a row."""


@dataclass(frozen=True)
class Run:
    """The parts of a run that all its stages share."""

    config: Config
    directory: Path
    tokenizer: Tokenizer
    mesh: Mesh
    journal: Journal
    checkpoints: Checkpoints
    stop: StopRequest
    alive: Callable[[], None]  # resets the watchdog
    damaged: list[tuple[int, str]]  # checkpoints that were set aside, and why


def train(config: Config, only: str | None = None) -> Path:
    """Run every stage that is not done; return the run's directory, a complete checkpoint.

    With `only`, a stage's name or its index from 0, no other stage is trained; the stage before it
    must be complete, unless the run is new. Ctrl-C, SIGTERM or a maintenance notice saves and
    raises `Interrupted`; another call continues from there, data included.

    In a run of several processes all call this. They share the directories of run and data, and a
    request to one of them stops all.

    Raises NotFinite after `run.max_skipped_steps` non-finite steps in a row; `training.replay`
    examines them.
    """
    with _open(config) as run:
        position = _position(run)
        once("write the files of the run", partial(_write_files, run))
        run.checkpoints.check_writable()
        _log_damaged(run, position)
        stages = _stages_to_run(config, only, position)
        params = _first_params(run) if position is None else {}
        for stage in stages:
            if position is None:
                examples = _open_data(run, stage, None)
                state = begin_stage(params, config, stage, run.mesh)
                event = "started" if stage is stages[0] else "entered"
                run.journal.event(event, stage, 0, code=code_version())
                params = _run_stage(run, stage, state, *examples).params
            elif position["stage_step"] < stage.steps:
                examples = _open_data(run, stage, position)
                state = _reset_failing(
                    _restore(run.checkpoints, abstract_state(config, stage, run.mesh)), config
                )
                _log_resumed(run, stage, position)
                params = _run_stage(run, stage, state, *examples).params
            else:  # a complete stage: its examples and moments are no longer needed
                params = load_params(run.directory, abstract_params(config.model, run.mesh))
                _log_resumed(run, stage, position)
            position = None
        return run.directory


def _log_resumed(run: Run, stage: StageConfig, position: Position):
    step = position["stage_step"]
    origin = {"from": run.config.run_step(stage.name, step)}
    run.journal.event("resumed", stage, step, **origin, code=code_version())


def _open_data(
    run: Run, stage: StageConfig, position: Position | None
) -> tuple[Mixture, Iterator[Batch]]:
    """Return the mixture of a stage's streams, and its batches from a position on.

    Raises ConfigError if the position belongs to other data.
    """
    config = run.config
    data = StageData(config, stage, run.tokenizer)
    mixture = data.mix_streams()
    rows = own_rows(batch_sharding(run.mesh), config.data.batch_rows)
    batches = iter(prefetch_batches(mixture, rows))
    if position is not None:
        check_sources(position.get("sources"), mixture.fingerprints, str(data.directory))
        batches.set_state(position["data"])
    return mixture, batches


def _run_stage(
    run: Run, stage: StageConfig, state: TrainState, mixture: Mixture, batches: Iterator[Batch]
) -> TrainState:
    """Train a stage from the state's step to its end, and return the last state."""
    config, mesh, first = run.config, run.mesh, int(state.step)
    recorder = Recorder(config, stage, mixture, run.journal)
    profiler = Profiler(run.directory, is_first())
    validate = (
        Validation(StageData(config, stage, run.tokenizer), mesh)
        if config.run.validate_every and first < stage.steps
        else None
    )
    step_function = None
    with (
        progress_bar(stage.name, stage.steps, first, shown=is_first()) as bar,
        ExitStack() as stack,
    ):
        stack.callback(profiler.close)
        for step in range(first + 1, stage.steps + 1):
            run.alive()
            with recorder.waiting():
                before = batches.get_state()
                batch = global_batch(next(batches), batch_sharding(mesh), config.data.batch_rows)
            if step_function is None:
                with recorder.outside():
                    step_function = _compile(run, stage, state, batch)
            profiler.before_step(f"{stage.name}-{step}")
            state, metrics = step_function(state, batch)
            recorder.add(step, metrics, before)
            bar(step, recorder.summary)
            if trace := profiler.after_step(metrics):
                run.journal.event("profiled", stage, step, directory=str(trace))
            run.checkpoints.check()
            last, stopping = step == stage.steps, run.stop.agreed(mesh)
            if recorder.failing >= config.run.max_skipped_steps:
                recorder.flush()
                raise _not_finite(run, stage, step, state, batches, recorder)
            if validate and not stopping and (last or step % config.run.validate_every == 0):
                recorder.flush()
                with recorder.outside():
                    streams = scores_to_dict(validate(state.params))
                run.journal.validation(
                    {"stage": stage.name, "step": step, "time": time.time(), "streams": streams}
                )
            if last or stopping or step % config.run.save_every == 0:
                recorder.flush()
                with recorder.outside():
                    _save(run, stage, step, state, mixture, batches)
            if stopping:
                run.checkpoints.wait()
                run.journal.event("stopped", stage, step, reason=run.stop.reason)
                raise Interrupted(
                    f"stopped in stage {stage.name} after step {step} of {stage.steps}; "
                    "saved, run again to continue"
                )
    for name, reasons in recorder.left_out.items():
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        log.warning("stage %s left out examples of %s: %s", stage.name, name, counts)
    return state


def _compile(run: Run, stage: StageConfig, state: TrainState, batch: Batch) -> Any:
    """Compile the training step for these shapes only, so a stage never compiles it again."""
    start = time.perf_counter()
    # Metrics are replicated, so that every process can read them.
    where = (jax.tree.map(lambda x: x.sharding, state), replicated(run.mesh))
    step = jax.jit(
        partial(train_step, config=run.config, stage=stage), donate_argnums=0, out_shardings=where
    )
    compiled = step.lower(state, batch).compile()
    run.journal.event("compiled", stage, int(state.step), seconds=time.perf_counter() - start)
    return compiled


@contextmanager
def _open(config: Config) -> Iterator[Run]:
    """Lock a run's directory and open its journal, checkpoints, stop requests and watchdog.

    Damaged checkpoints are set aside first.
    """
    check_path(config.run.directory, "run.directory")
    if "://" in config.data.directory:
        raise ConfigError(
            f"data.directory must be a path, got {config.data.directory}; mount the bucket on all "
            "hosts, as with gcsfuse"
        )
    directory = Path(config.run.directory)
    tokenizer = Tokenizer.load(
        Path(config.data.directory) / config.stages[0].directory / "tokenizer"
    )
    mesh = make_mesh(config.mesh)
    ends = [config.run_step(stage.name, stage.steps) for stage in config.stages]
    with jax.set_mesh(mesh), ExitStack() as stack:
        check_batches(config)
        once(f"lock {directory}", lambda: stack.enter_context(locked(directory)))
        once("write the files of the model", partial(_check_files, directory, config, tokenizer))
        check_shared(directory)
        damaged = set_aside_damaged(directory)
        for step in add_checksums(directory):
            log.info("checkpoint %d had no checksums; they are of its files as they are", step)
        with (
            open_journal(directory, config) as journal,
            Checkpoints(directory, config.run.keep, config.run.keep_every, ends) as checkpoints,
            stop_requests() as stop,
            watchdog(config.run.step_timeout) as alive,
        ):
            yield Run(
                config, directory, tokenizer, mesh, journal, checkpoints, stop, alive, damaged
            )


def _check_files(directory: Path, config: Config, tokenizer: Tokenizer):
    """Write the files of the model into a new directory, before any step.

    Raises CheckpointError if the directory has the files of another model.
    """
    check_model_files(directory, config.model, tokenizer)
    if not (directory / STEPS).exists():
        write_model_files(directory, config.model, tokenizer)


def _write_files(run: Run):
    """Write the files of a run beside its steps, after its position was found valid."""
    write_model_files(run.directory, run.config.model, run.tokenizer)
    write_whole(run.directory / CONFIG, json.dumps(to_dict(run.config), indent=2))


def _position(run: Run) -> Position | None:
    """Return the position of the newest checkpoint, or None without one.

    Raises ConfigError if the config cannot continue from it.
    """
    step = run.checkpoints.latest
    if step is None:
        return None
    position = run.checkpoints.metadata(step)
    paths = list(flatten(abstract_params(run.config.model, run.mesh)))
    check_position(run.config, position, step, paths, f"{run.checkpoints.directory}/{step}")
    stage = next(stage for stage in run.config.stages if stage.name == position["stage"])
    if changed := changed_settings(position.get("config", {}), run.config):
        listed = ", ".join(f"{name} {old!r} -> {new!r}" for name, (old, new) in changed.items())
        log.warning("settings have changed since the checkpoint: %s", listed)
        run.journal.event("changed", stage, position["stage_step"], settings=changed)
    return position


def _log_damaged(run: Run, position: Position | None):
    """Log the damaged checkpoints, at the position from which the run continues instead."""
    stages = {stage.name: stage for stage in run.config.stages}
    stage, step = (
        (stages[position["stage"]], position["stage_step"])
        if position
        else (run.config.stages[0], 0)
    )
    for checkpoint, reason in run.damaged:
        log.warning(
            "checkpoint %d is damaged and was moved to %s: %s",
            checkpoint,
            run.directory / DAMAGED,
            reason,
        )
        run.journal.event("damaged", stage, step, checkpoint=checkpoint, reason=reason)


def _stages_to_run(
    config: Config, only: str | None, position: Position | None
) -> tuple[StageConfig, ...]:
    """Return the stages to run, from the stage of the position on.

    Raises ConfigError if the stage `only` does not exist or cannot start yet.
    """
    names = [stage.name for stage in config.stages]
    current = 0 if position is None else names.index(position["stage"])
    if only is None:
        return config.stages[current:]
    if only not in (*names, *map(str, range(len(names)))):
        listed = ", ".join(f"{number} {name}" for number, name in enumerate(names))
        raise ConfigError(f"expected one of the stages {listed}, got {only!r}")
    wanted = names.index(only) if only in names else int(only)
    if position is None:
        if wanted and config.run.init_from is None:
            raise ConfigError(
                f"stage {names[wanted]} begins where stage {names[wanted - 1]} ends, "
                f"and {config.run.directory} is empty; run the stages before it, or set "
                "run.init_from to a checkpoint to begin with"
            )
        return (config.stages[wanted],)
    done = position["stage_step"] >= config.stages[current].steps
    if wanted > current + done:
        raise ConfigError(
            f"stage {names[wanted]} begins where stage {names[wanted - 1]} ends, "
            f"and {config.run.directory} is at step {position['stage_step']} of "
            f"{config.stages[current].steps} of stage {names[current]}; run that first"
        )
    return config.stages[current : wanted + 1]


def _first_params(run: Run) -> Params:
    """Return random parameters, or those of the checkpoint `run.init_from`.

    Raises ConfigError if that checkpoint has another tokenizer.
    """
    config, checkpoint = run.config, run.config.run.init_from
    if checkpoint is None:
        return init_params(config.model, run.mesh, config.run.seed)
    _, tokenizer = read_model_files(checkpoint)
    if tokenizer.definition != run.tokenizer.definition:
        raise ConfigError(
            f"expected {checkpoint} (run.init_from) and {config.data.directory} (data.directory) "
            "to have one tokenizer, got two; prepare the data with the checkpoint's (--tokenizer)"
        )
    return load_params(checkpoint, abstract_params(config.model, run.mesh))


def _save(
    run: Run,
    stage: StageConfig,
    step: int,
    state: TrainState,
    mixture: Mixture,
    batches: Iterator[Batch],
):
    position = {
        "stage": stage.name,
        "stage_step": step,
        "data": batches.get_state(),
        "sources": dict(mixture.fingerprints),
        "config": to_dict(run.config),
        "code": code_version(),
    }
    run.checkpoints.save(
        run.config.run_step(stage.name, step),
        {"params": state.params, "training": _training_tree(state)},
        position,
    )


def _training_tree(state: TrainState) -> dict[str, Any]:
    """Return the part of the state that a checkpoint keeps beside the parameters."""
    return {
        "moments": state.moments,
        "step": state.step,
        "skipped": state.skipped,
        "failing": state.failing,
    }


def _restore(checkpoints: Checkpoints, abstract: TrainState) -> TrainState:
    latest = checkpoints.latest
    assert latest is not None
    trees = checkpoints.restore(
        latest, {"params": abstract.params, "training": _training_tree(abstract)}
    )
    return TrainState(params=trees["params"], **trees["training"])


def _reset_failing(state: TrainState, config: Config) -> TrainState:
    """Let a run that stopped after too many non-finite steps try again."""
    gave_up = int(state.failing) >= config.run.max_skipped_steps
    return state.replace(failing=jax.numpy.zeros_like(state.failing)) if gave_up else state


def _not_finite(
    run: Run,
    stage: StageConfig,
    step: int,
    state: TrainState,
    batches: Iterator[Batch],
    recorder: Recorder,
) -> NotFinite:
    """Save the state and the first of the failing batches; return the error to raise.

    The parameters are those that the first failing step met: nothing has changed since.
    """
    assert recorder.failed is not None
    first, before = recorder.failed
    _save(run, stage, step, state, recorder.mixture, batches)
    run.checkpoints.wait()
    checkpoint = run.config.run_step(stage.name, step)
    details = {"stage": stage.name, "step": first, "checkpoint": checkpoint}

    def keep() -> str:
        records = batch_origins(recorder.mixture, dict(before))
        batch = batch_at(recorder.mixture, dict(before))
        return str(keep_batch(run.directory, batch, details | {"records": records}))

    file = once("keep the batch", keep)
    run.journal.event(
        "stopped",
        stage,
        step,
        reason=f"{run.config.run.max_skipped_steps} steps in a row were not finite",
    )
    return NotFinite(
        f"{run.config.run.max_skipped_steps} steps in a row up to step {step} of stage "
        f"{stage.name} had a loss or gradients that are not finite (run.max_skipped_steps); "
        f"saved as they were, with the first of the batches in {file}. "
        f"Look into it by python -m launch.replay {run.directory}"
    )
