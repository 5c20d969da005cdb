"""The child process of a soak: trains a config while a fault is injected from outside.

python -m tests.soak.faults CONFIG.json ORDER.json
"""

import hashlib
import json
import resource
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lclm_jax.batch import Batch
from lclm_jax.checkpoint import steps as checkpoint
from lclm_jax.cli import make_parser, run
from lclm_jax.config import Config
from lclm_jax.config.values import from_dict
from lclm_jax.data.loading import PackedIterator, batch_origins
from lclm_jax.files.run_layout import LOG
from lclm_jax.training import Hook, StepInfo, train
from lclm_jax.training import run as training_run
from lclm_jax.training import stage as training_stage
from lclm_jax.training.state import TrainState
from tests.soak.plan import Fault, Kind

HOOKS: list[Hook] = []  # called after every step, in this order
BATCHES = "batches.jsonl"  # beside the log: the batch of every step
POISONED_SHARES = 0.15, 0.55  # of each stage, after which a step meets parameters that are NaN
DIED = "the data worker died"
DAY = 86400.0
SLOW_BATCH_SECONDS = 0.4
STUCK_TIMEOUT_SECONDS = 10.0  # of the watchdog of a child whose data worker is stuck


@dataclass(frozen=True)
class Order:
    """The orders for a child: its fault, if any, and how slowly it trains."""

    fault: Fault | None = None
    pause: float = 0.0  # seconds after every step, so that kills hit between steps, too


def main():
    parser = make_parser(__doc__)
    parser.add_argument("config", type=Path, help="as JSON")
    parser.add_argument("order", type=Path, help="the orders, as JSON")
    arguments = parser.parse_args()
    config = from_dict(Config, json.loads(arguments.config.read_text(encoding="utf-8")))
    order = from_dict(Order, json.loads(arguments.order.read_text(encoding="utf-8")))
    poison(config)
    keep_batches(config)
    if order.fault is not None and order.fault.kind in CAUSES:
        CAUSES[order.fault.kind](config, order.fault)
    after_step(lambda _: time.sleep(order.pause))
    train(config, hooks=HOOKS)


def poisoned_steps(steps: int) -> list[int]:
    """Return the steps of a stage that are skipped in every run."""
    return [max(1, round(share * steps)) for share in POISONED_SHARES]


def poison(config: Config):
    """Make a parameter NaN within the compiled step, in a few steps of every stage.

    It is restored after each of them.
    """
    original = training_stage.train_step

    def train_step(state: TrainState, batch: Batch, *, config: Config, stage: Any):
        now = jnp.any(state.step + 1 == jnp.array(poisoned_steps(stage.steps)))
        scale = state.params["decoder"]["norm"]["scale"]
        after, metrics = original(
            state.replace(params=_with_scale(state.params, jnp.where(now, jnp.nan, scale))),
            batch,
            config=config,
            stage=stage,
        )
        kept = jnp.where(now, scale, after.params["decoder"]["norm"]["scale"])
        return after.replace(params=_with_scale(after.params, kept)), metrics

    training_stage.train_step = train_step


def _with_scale(params: Any, scale: Any) -> Any:
    decoder = params["decoder"]
    return {**params, "decoder": {**decoder, "norm": {**decoder["norm"], "scale": scale}}}


def keep_batches(config: Config):
    """Write the batch of every step to a journal: the hash of its bytes, and its records."""
    hashes: list[str] = []
    to_devices = training_stage.global_batch
    file = Path(config.run.directory) / BATCHES

    def global_batch(batch: Batch, *rest: Any):
        hashes[:] = [hash_batch(batch)]
        return to_devices(batch, *rest)

    def keep(info: StepInfo):
        records = batch_origins(info.stage_run.mixture, dict(info.data_position))
        line = {"stage": info.stage_run.stage.name, "step": info.step}
        line |= {"sha256": hashes[0], "records": records}
        with file.open("ab", buffering=0) as out:
            out.write(json.dumps(line).encode() + b"\n")  # in one call: a kill cannot cut it short

    training_stage.global_batch = global_batch
    HOOKS.append(keep)


def hash_batch(batch: Batch) -> str:
    """Return the sha256 of all arrays of a batch."""
    digest = hashlib.sha256()
    for array in jax.tree.leaves(batch):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def after_step(act: Callable[[int], None]):
    """Call `act` with the number of every step of the run, before it is saved."""

    def hook(info: StepInfo):
        act(info.stage_run.run.config.run_step(info.stage_run.stage.name, info.step))

    HOOKS.append(hook)


def fill_disk_while_saving(config: Config, fault: Fault):
    """Let no file grow beyond a few kilobytes while a checkpoint is written."""
    save = checkpoint.Checkpoints.save

    def save_when_full(self: checkpoint.Checkpoints, step: int, trees: Any, metadata: Any):
        if step < fault.step:
            save(self, step, trees, metadata)
            return
        self.wait()
        limit_files(2000 + int(6000 * fault.moment))
        try:
            save(self, step, trees, metadata)
            self.wait()
        finally:
            limit_files(resource.RLIM_INFINITY)

    checkpoint.Checkpoints.save = save_when_full


def fill_disk(config: Config, fault: Fault):
    """Let no file grow beyond the size of the log, from a step on."""
    file, full = Path(config.run.directory) / LOG, []

    def fill(step: int):
        if step >= fault.step and not full:
            full.append(file.stat().st_size + int(500 * fault.moment))
            limit_files(full[0])

    after_step(fill)


def limit_files(size: int):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def slow_data(config: Config, fault: Fault):
    """Delay every batch."""
    read = PackedIterator.__next__

    def read_late(self: PackedIterator) -> Batch:
        time.sleep(SLOW_BATCH_SECONDS)
        return read(self)

    PackedIterator.__next__ = read_late


def kill_data(config: Config, fault: Fault):
    """Raise in the thread that reads the data, after a few batches."""
    read, count = PackedIterator.__next__, [1 + int(6 * fault.moment)]

    def read_or_die(self: PackedIterator) -> Batch:
        count[0] -= 1
        if count[0] < 0:
            raise RuntimeError(DIED)
        return read(self)

    PackedIterator.__next__ = read_or_die


def block_data(config: Config, fault: Fault):
    """Block the thread that reads the data after a few batches, under a short step timeout."""
    watch = training_run.watchdog
    training_run.watchdog = lambda _: watch(STUCK_TIMEOUT_SECONDS)
    read, count = PackedIterator.__next__, [1 + int(6 * fault.moment)]

    def read_or_block(self: PackedIterator) -> Batch:
        count[0] -= 1
        if count[0] < 0:
            threading.Event().wait()
        return read(self)

    PackedIterator.__next__ = read_or_block


def jump(days: int) -> Callable[[Config, Fault], None]:
    """Return a fault: the clock jumps a few steps before the child is stopped."""

    def disturb(config: Config, fault: Fault):
        real, shift = time.time, [0.0]
        after_step(lambda step: shift.__setitem__(0, days * DAY if step >= fault.step - 3 else 0.0))
        time.time = lambda: real() + shift[0]

    return disturb


CAUSES: dict[Kind, Callable[[Config, Fault], None]] = {
    "full disk: checkpoint": fill_disk_while_saving,
    "full disk: log": fill_disk,
    "data worker: slow": slow_data,
    "data worker: dead": kill_data,
    "data worker: stuck": block_data,
    "clock: a day on": jump(1),
    "clock: a day back": jump(-1),
}


if __name__ == "__main__":
    run(main)
