"""One stage of a run: its data from a position on, its compiled step, and its checkpoints."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import grain
import jax

from lclm_jax.batch import Batch
from lclm_jax.config import Config, StageConfig
from lclm_jax.config.values import to_dict
from lclm_jax.data.loading import Mixture, StageData, prefetch_batches
from lclm_jax.distributed.sharding import batch_sharding, global_batch, own_rows, replicated
from lclm_jax.training.clock import StepClock
from lclm_jax.training.resume import Position, check_sources
from lclm_jax.training.run import Run
from lclm_jax.training.state import TrainState, abstract_state
from lclm_jax.training.step import Metrics, train_step
from lclm_jax.version import code_version

DataPosition = dict[str, Any]  # state of the data's iterator before a batch


@dataclass(frozen=True)
class StageRun:
    """A stage of a run with its data opened."""

    run: Run
    stage: StageConfig
    data: StageData
    mixture: Mixture
    batches: grain.DatasetIterator[Batch]  # the rows of this process, from a position on

    def event(self, name: str, step: int, **fields: Any):
        """Write an event of a step to the run's journal."""
        self.run.journal.event(name, self.stage, step, **fields)

    def global_batches(self, clock: StepClock) -> Iterator[tuple[DataPosition, Batch]]:
        """Yield batches of all processes, each with the position of the data before it.

        The time until a batch is there counts as waiting.
        """
        where, rows = batch_sharding(self.run.mesh), self.run.config.data.batch_rows
        while True:
            with clock.waiting():
                position = self.batches.get_state()
                batch = global_batch(next(self.batches), where, rows)
            yield position, batch

    def compile_step(
        self, state: TrainState, batch: Batch
    ) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
        """Compile the training step for these shapes only, so a stage never compiles it again."""
        start = time.perf_counter()
        # Metrics are replicated, so that every process can read them.
        where = (jax.tree.map(lambda x: x.sharding, state), replicated(self.run.mesh))
        step = jax.jit(
            partial(train_step, config=self.run.config, stage=self.stage),
            donate_argnums=0,
            out_shardings=where,
        )
        compiled = step.lower(state, batch).compile()
        self.event("compiled", int(state.step), seconds=time.perf_counter() - start)
        return compiled

    def save(self, step: int, state: TrainState):
        """Save a checkpoint: parameters, optimizer state, and the position after the step."""
        position = {
            "stage": self.stage.name,
            "stage_step": step,
            "data": self.batches.get_state(),
            "sources": dict(self.mixture.fingerprints),
            "config": to_dict(self.run.config),
            "code": code_version(),
        }
        self.run.checkpoints.save(
            self.run.config.run_step(self.stage.name, step),
            {"params": state.params, "training": _training_tree(state)},
            position,
        )


def open_stage(run: Run, stage: StageConfig, position: Position | None) -> StageRun:
    """Open a stage's data at a position, or at the beginning.

    Raises ConfigError if the position belongs to other data.
    """
    data = StageData(run.config, stage, run.tokenizer)
    mixture = data.mix_streams()
    rows = own_rows(batch_sharding(run.mesh), run.config.data.batch_rows)
    batches = iter(prefetch_batches(mixture, rows))
    if position is not None:
        check_sources(position.get("sources"), mixture.fingerprints, str(data.directory))
        batches.set_state(position["data"])
    return StageRun(run, stage, data, mixture, batches)


def restore_state(run: Run, stage: StageConfig) -> TrainState:
    """Read the state of the newest checkpoint, which is of this stage."""
    latest = run.checkpoints.latest
    assert latest is not None
    abstract = abstract_state(run.config, stage, run.mesh)
    trees = run.checkpoints.restore(
        latest, {"params": abstract.params, "training": _training_tree(abstract)}
    )
    return _reset_failing(TrainState(params=trees["params"], **trees["training"]), run.config)


def _training_tree(state: TrainState) -> dict[str, Any]:
    """Return the part of the state that a checkpoint keeps beside the parameters."""
    return {
        "moments": state.moments,
        "step": state.step,
        "skipped": state.skipped,
        "failing": state.failing,
    }


def _reset_failing(state: TrainState, config: Config) -> TrainState:
    """Let a run that stopped after too many non-finite steps try again."""
    gave_up = int(state.failing) >= config.run.max_skipped_steps
    return replace(state, failing=jax.numpy.zeros_like(state.failing)) if gave_up else state
