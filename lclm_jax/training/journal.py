"""The journal of a run: metrics, validations and events as JSON lines, and in TensorBoard and W&B.

`log.jsonl` has a line for every few steps, `validation.jsonl` one for every validation, and
`events.jsonl` one for everything else that happened. In a run of several processes the first one
writes.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from lclm_jax.config import Config, ConfigError, StageConfig
from lclm_jax.config.values import to_dict
from lclm_jax.distributed.processes import is_first
from lclm_jax.errors import UserError
from lclm_jax.files.run_layout import EVENTS, LOG, TENSORBOARD, VALIDATION

log = logging.getLogger(__name__)


class JournalError(UserError, OSError):
    """A failure to write a line."""


class Sink(Protocol):
    """A destination of metrics beside the files."""

    def add(self, step: int, figures: Mapping[str, float]):
        """Add metrics by name, at a step of the run."""


class Journal:
    """A writer of JSON lines into a run's directory, and of their numbers to the sinks."""

    def __init__(
        self, directory: Path, config: Config, sinks: tuple[Sink, ...] = (), writes: bool = True
    ):
        self.directory, self.config, self.sinks, self.writes = directory, config, sinks, writes

    def log(self, line: Mapping[str, Any]):
        """Write the metrics of the last steps."""
        self._write(LOG, line)

    def validation(self, line: Mapping[str, Any]):
        """Write the scores of a validation."""
        self._write(VALIDATION, line, "validation/")

    def event(self, event: str, stage: StageConfig, step: int, **fields: Any):
        """Write an event, at a step of a stage."""
        self._append(
            EVENTS,
            {"time": time.time(), "event": event, "stage": stage.name, "step": step, **fields},
        )

    def _write(self, name: str, line: Mapping[str, Any], prefix: str = ""):
        self._append(name, line)
        step = self.config.run_step(line["stage"], line["step"])
        for sink in self.sinks if self.writes else ():
            sink.add(
                step,
                {
                    prefix + key: value
                    for key, value in numbers(line)
                    if key not in ("step", "steps", "time")
                },
            )

    def _append(self, name: str, line: Mapping[str, Any]):
        if not self.writes:
            return
        path = self.directory / name
        try:
            with path.open("a+b") as file:
                if file.seek(0, 2) and (file.seek(-1, 2), file.read(1))[1] != b"\n":
                    file.write(b"\n")  # keep apart a line that was cut short
                file.write(json.dumps(line).encode() + b"\n")
        except OSError as error:
            raise JournalError(
                f"could not write to {path}: {error}; free some space, then start again to "
                "continue from the newest checkpoint"
            ) from error


def numbers(line: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number in nested metrics, with its path.

    >>> dict(numbers({"loss": 2.0, "streams": {"sft": {"tokens": 3}}}))
    {'loss': 2.0, 'streams/sft/tokens': 3.0}
    """
    for key, value in line.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{path}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{path}{key}", float(value)


@contextmanager
def open_journal(directory: Path, config: Config) -> Iterator[Journal]:
    """Open the journal of a run, with the sinks that its config asks for."""
    with ExitStack() as stack:
        sinks: list[Sink] = []
        if is_first():
            sinks += (
                [stack.enter_context(_tensorboard(directory))] if config.run.tensorboard else []
            )
            sinks += [stack.enter_context(_wandb(directory, config))] if config.run.wandb else []
        yield Journal(directory, config, tuple(sinks), writes=is_first())


class _TensorBoard:
    def __init__(self, writer: Any):
        self.writer = writer

    def add(self, step: int, figures: Mapping[str, float]):
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()


@contextmanager
def _tensorboard(directory: Path) -> Iterator[Sink]:
    try:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            "run.tensorboard needs tensorboardX; pip install -e '.[watch]', "
            "or set run.tensorboard=False"
        ) from error
    with SummaryWriter(str(directory / TENSORBOARD)) as writer:
        yield _TensorBoard(writer)


class _Wandb:
    def __init__(self, run: Any):
        self.run = run

    def add(self, step: int, figures: Mapping[str, float]):
        self.run.log({"step": step, **figures})


@contextmanager
def _wandb(directory: Path, config: Config) -> Iterator[Sink]:
    """Open the W&B run of a directory, the same one however often training is started there."""
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            "run.wandb needs wandb; pip install -e '.[watch]', or set run.wandb=None"
        ) from error
    identifier = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:16]
    run = wandb.init(
        project=config.run.wandb,
        name=directory.resolve().name,
        id=identifier,
        resume="allow",
        dir=str(directory),
        config=to_dict(config),
    )
    run.define_metric("*", step_metric="step")
    try:
        yield _Wandb(run)
    finally:
        run.finish()
