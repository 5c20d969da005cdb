"""A run: its directory, journal and checkpoints, and the position from which it continues."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.sharding import Mesh

from lclm_jax.checkpoint.model_files import check_model_files, read_model_files, write_model_files
from lclm_jax.checkpoint.steps import Checkpoints, add_checksums, load_params, set_aside_damaged
from lclm_jax.config import Config, ConfigError, StageConfig
from lclm_jax.config.values import to_dict
from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.distributed.processes import check_shared, once
from lclm_jax.distributed.sharding import check_batches, make_mesh
from lclm_jax.distributed.stopping import StopRequest, stop_requests
from lclm_jax.files.atomic import write_whole
from lclm_jax.files.directories import check_path, locked
from lclm_jax.files.run_layout import CONFIG, DAMAGED, STEPS
from lclm_jax.model.params import abstract_params, flatten, init_params
from lclm_jax.training.journal import Journal, open_journal
from lclm_jax.training.resume import Position, changed_settings, check_position
from lclm_jax.training.watchdog import watchdog
from lclm_jax.typing import Params
from lclm_jax.version import code_version

log = logging.getLogger(__name__)


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
    report_progress: Callable[[], None]  # resets the watchdog
    damaged: list[tuple[int, str]]  # checkpoints that were set aside, and why

    def write_files(self):
        """Write the files of the run beside its steps."""
        write_model_files(self.directory, self.config.model, self.tokenizer)
        write_whole(self.directory / CONFIG, json.dumps(to_dict(self.config), indent=2))


@contextmanager
def open_run(config: Config) -> Iterator[Run]:
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
        once("write the files of the model", lambda: _check_files(directory, config, tokenizer))
        check_shared(directory)
        damaged = set_aside_damaged(directory)
        for step in add_checksums(directory):
            log.info("checkpoint %d had no checksums; they are of its files as they are", step)
        with (
            open_journal(directory, config) as journal,
            Checkpoints(directory, config.run.keep, config.run.keep_every, ends) as checkpoints,
            stop_requests() as stop,
            watchdog(config.run.step_timeout) as report_progress,
        ):
            yield Run(
                config=config,
                directory=directory,
                tokenizer=tokenizer,
                mesh=mesh,
                journal=journal,
                checkpoints=checkpoints,
                stop=stop,
                report_progress=report_progress,
                damaged=damaged,
            )


def _check_files(directory: Path, config: Config, tokenizer: Tokenizer):
    """Write the files of the model into a new directory, before any step.

    Raises CheckpointError if the directory has the files of another model.
    """
    check_model_files(directory, config.model, tokenizer)
    if not (directory / STEPS).exists():
        write_model_files(directory, config.model, tokenizer)


def read_position(run: Run) -> Position | None:
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


def log_damaged(run: Run, position: Position | None):
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


def log_resumed(run: Run, stage: StageConfig, position: Position):
    """Write the event of a stage that continues from a position."""
    step = position["stage_step"]
    origin = {"from": run.config.run_step(stage.name, step)}
    run.journal.event("resumed", stage, step, **origin, code=code_version())


def stages_to_run(
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


def first_params(run: Run) -> Params:
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
