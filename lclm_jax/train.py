"""Training: one loop for every stage, from the first decoder-only warm-up to supervised fine-tuning.

`train(config)` starts, continues after any interruption, or returns at once when all stages are done.
"""

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lclm_jax.checkpoint import Checkpoints, write_model_files
from lclm_jax.config import Config, ConfigError, StageConfig, to_dict
from lclm_jax.data.batch import Batch
from lclm_jax.data.streams import stage_batches
from lclm_jax.data.tokens import Tokenizer
from lclm_jax.loss import token_losses
from lclm_jax.model.lclm import apply, cast, output_table
from lclm_jax.optim import Flat, component, split_trained, unflatten, update
from lclm_jax.processes import check_shared, is_first, once
from lclm_jax.progress import progress_bar
from lclm_jax.sharding import batch_sharding, check_batches, constrain, global_batch, make_mesh, own_rows, replicated
from lclm_jax.state import TrainState, abstract_state, begin_stage, init_params
from lclm_jax.stopping import StopRequest, stop_requests
from lclm_jax.typing import Array

log = logging.getLogger(__name__)
Metrics = dict[str, Any]


def train(config: Config) -> Path:
    """Runs every stage that is not done and returns the run's directory, a complete checkpoint.

    Ctrl-C or SIGTERM saves and raises `Interrupted`; calling again continues from there, data included. In a run of several
    processes all call this, the directories of run and data are the same for all, and a request to one of them stops all.
    """
    for name, path in (("run", config.run.directory), ("data", config.data.directory)):
        if "://" in path:
            raise ConfigError(f"{name}.directory must be a path, got {path}; mount the bucket on all hosts, as with gcsfuse")
    directory = Path(config.run.directory)
    tokenizer = Tokenizer.load(Path(config.data.directory) / config.stages[0].directory / "tokenizer")
    mesh = make_mesh(config.mesh)
    with (
        jax.set_mesh(mesh),
        _begin(directory, config, tokenizer) as lines,
        Checkpoints(directory, config.run.keep) as checkpoints,
        stop_requests() as stop,
    ):
        rows, position = own_rows(batch_sharding(mesh), config.data.rows), _position(checkpoints, config)
        start = 0 if position is None else [stage.name for stage in config.stages].index(position["stage"])
        params = init_params(config.model, mesh, config.run.seed) if position is None else {}
        for stage in config.stages[start:]:
            batches = iter(stage_batches(config, stage, tokenizer, rows))
            if position is None:
                state = begin_stage(params, config, stage, mesh)
            else:
                state = _restore(checkpoints, abstract_state(config, stage, mesh))
                batches.set_state(position["data"])
                position = None
            params = _run_stage(config, stage, state, batches, checkpoints, lines, stop).params
    return directory


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop and has saved where it was."""


def train_step(state: TrainState, batch: Batch, *, config: Config, stage: StageConfig) -> tuple[TrainState, Metrics]:
    """One update of a stage's trained parameters. Metrics are sums and norms, still on device."""
    trained, frozen = split_trained(state.params, stage)
    loss, streams, gradients = gradients_of(trained, frozen, batch, config, stage)
    norm = optax.tree.norm(gradients)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    memory = jnp.any(batch.slots >= 0)
    params, moments = update(state.params, state.moments, gradients, stage, config.optimizer, finite, memory)
    metrics = {
        "loss": loss,
        "gradient_norm": norm,
        "skipped": state.skipped + ~finite,
        **streams,
        "fill": jnp.mean(batch.segments > 0),
        "window_fill": jnp.mean(batch.windows.segments > 0),
    }
    for name in sorted({component(path) for path in gradients}):
        members = [x for path, x in gradients.items() if component(path) == name]
        metrics[f"gradient_norm/{name}"] = optax.tree.norm(members)
    return TrainState(params, moments, state.step + 1, state.skipped + ~finite), metrics


def gradients_of(trained: Flat, frozen: Flat, batch: Batch, config: Config, stage: StageConfig) -> tuple[Array, Metrics, Flat]:
    """The mean loss over the batch's trained tokens, sums by stream, and float32 gradients.

    With `run.micro_batches`, rows are read a share at a time and gradients add up; each trained token counts the same.
    """
    trained, frozen = cast(trained, config.model.dtype), cast(frozen, config.model.dtype)
    total = jnp.maximum(jnp.sum(batch.weights), 1.0)
    differentiate = jax.value_and_grad(objective, has_aux=True)

    def some(rows: Batch):
        (loss, (nll, correct)), gradients = differentiate(trained, frozen, rows, config, total)
        streams = jax.nn.one_hot(rows.streams, len(stage.streams)) * rows.weights[..., None]
        sums = {
            "stream_nll": jnp.einsum("BT,BTX->X", nll, streams),
            "stream_correct": jnp.einsum("BT,BTX->X", correct, streams),
            "stream_tokens": streams.sum((0, 1)),
        }
        return loss, sums, jax.tree.map(lambda x: x.astype(jnp.float32), gradients)

    count = config.run.micro_batches
    if count == 1:
        return some(batch)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(some, batch))
    shares = jax.tree.map(partial(_shares, count=count), batch)
    return jax.lax.scan(lambda sums, rows: (jax.tree.map(jnp.add, sums, some(rows)), None), nothing, shares)[0]


def _shares(x: Array, count: int) -> Array:
    """[B ...] -> [count, B / count ...]; every device splits the rows it has."""
    return constrain(x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), None, "batch", *[None] * (x.ndim - 1))


def objective(trained: Flat, frozen: Flat, batch: Batch, config: Config, total: Array | None = None):
    """Loss of the trained tokens over `total`, by default their number, and by position (loss, best guess right)."""
    params = cast(unflatten({**trained, **frozen}), config.model.dtype)
    hidden = apply(config.model, params, batch)
    nll, correct = token_losses(hidden, output_table(params, config.model), batch.targets, batch.weights, config.run.loss_chunk)
    total = jnp.maximum(jnp.sum(batch.weights), 1.0) if total is None else total
    return jnp.sum(nll * batch.weights) / total, (nll, correct)


def _begin(directory: Path, config: Config, tokenizer: Tokenizer) -> TextIO:
    """Writes what a run's directory holds beside its steps and opens its log, in process 0. Needs a mesh in scope."""
    check_batches(config)

    def write():
        write_model_files(directory, config.model, tokenizer)
        (directory / "config.json").write_text(json.dumps(to_dict(config), indent=2))

    once("write the files of the model", write)
    check_shared(directory)
    return (directory / "log.jsonl" if is_first() else Path(os.devnull)).open("a")


def _run_stage(
    config: Config,
    stage: StageConfig,
    state: TrainState,
    batches: Iterator[Batch],
    checkpoints: Checkpoints,
    lines: TextIO,
    stop: StopRequest,
) -> TrainState:
    first = config.stages.index(stage)
    before = sum(earlier.steps for earlier in config.stages[:first])
    mesh = make_mesh(config.mesh)
    where = jax.tree.map(lambda x: x.sharding, state), replicated(mesh)  # so that every process can read the metrics
    step_function = jax.jit(partial(train_step, config=config, stage=stage), donate_argnums=0, out_shardings=where)
    recorder = Recorder(config, stage, lines, batches)
    begun = int(state.step)
    with progress_bar(stage.name, stage.steps, begun, shown=is_first()) as bar:
        for step in range(begun + 1, stage.steps + 1):
            with recorder.waiting():
                own = next(batches)
            state, metrics = step_function(state, global_batch(own, batch_sharding(mesh), config.data.rows))
            recorder.add(step, metrics)
            bar(step, recorder.summary)
            last, stopping = step == stage.steps, stop.agreed(mesh)
            if last or stopping or step % config.run.save_every == 0:
                recorder.flush()
                position = {"stage": stage.name, "stage_step": step, "data": batches.get_state()}
                checkpoints.save(before + step, {"params": state.params, "training": _training(state)}, position)
            if stopping:
                checkpoints.wait()
                raise Interrupted(
                    f"stopped in stage {stage.name} after step {step} of {stage.steps}; saved, run again to continue"
                )
    for name, reasons in recorder.left_out().items():
        told = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        log.warning("stage %s left out examples of %s: %s", stage.name, name, told)
    return state


def _position(checkpoints: Checkpoints, config: Config) -> dict[str, Any] | None:
    """Stage, step and data position of the newest checkpoint, if there is one."""
    if checkpoints.latest is None:
        return None
    position = checkpoints.metadata(checkpoints.latest)
    names = [stage.name for stage in config.stages]
    if position.get("stage") not in names:
        raise ConfigError(
            f"{checkpoints.directory} was saved in stage {position.get('stage')!r}, this config has {', '.join(names)}; "
            "use the config it was trained with, or another run.directory"
        )
    return position


def _training(state: TrainState) -> dict[str, Any]:
    """What a checkpoint keeps beside the parameters."""
    return {"moments": state.moments, "step": state.step, "skipped": state.skipped}


def _restore(checkpoints: Checkpoints, abstract: TrainState) -> TrainState:
    latest = checkpoints.latest
    assert latest is not None
    trees = checkpoints.restore(latest, {"params": abstract.params, "training": _training(abstract)})
    return TrainState(params=trees["params"], **trees["training"])


class Recorder:
    """Adds up metrics and writes one JSON line every `log_every` steps. Reads the step before, never the one running."""

    def __init__(self, config: Config, stage: StageConfig, lines: TextIO, batches: Iterator[Batch]):
        self.config, self.stage, self.lines, self.batches = config, stage, lines, batches
        self.pending: list[tuple[int, Metrics]] = []
        self.summary = ""
        self.since = time.perf_counter()
        self.waited = 0.0  # seconds since then

    @contextmanager
    def waiting(self):
        """Around what waits for data; its share of the time bounds from above how long devices stood idle for them."""
        begun = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begun

    def left_out(self) -> dict[str, dict[str, int]]:
        """Examples that fit no row, by stream and reason, since the stage began."""
        counts = self.batches.get_state()["left_out"]
        return {self.stage.streams[int(number)].name: reasons for number, reasons in counts.items()}

    def add(self, step: int, metrics: Metrics):
        self.pending.append((step, metrics))
        if len(self.pending) > 1:
            self.summary = f"loss {float(self.pending[-2][1]['loss']):.3f}"
        if step % self.config.run.log_every == 0:
            self.flush()

    def flush(self):
        """Writes the line of all steps since the last one."""
        if not self.pending:
            return
        steps = jax.device_get([metrics for _, metrics in self.pending])
        sums = {key: sum(metrics[key] for metrics in steps) for key in ("stream_nll", "stream_correct", "stream_tokens")}
        seconds = time.perf_counter() - self.since
        tokens = float(sums["stream_tokens"].sum())
        line = {"stage": self.stage.name, "step": self.pending[-1][0], "steps": self.stage.steps}
        line |= {"loss": float(sums["stream_nll"].sum()) / max(tokens, 1.0), "trained_tokens": tokens}
        line |= {"positions_per_second": len(steps) * self.config.data.rows * self.config.data.positions / seconds}
        line |= {"waiting": self.waited / seconds, "left_out": self.left_out()}
        line |= {key: float(value) for key, value in steps[-1].items() if value.ndim == 0 and key != "loss"}
        line["streams"] = {
            stream.name: {"loss": float(nll / count), "accuracy": float(correct / count), "tokens": int(count)}
            for stream, (nll, correct, count) in zip(self.stage.streams, np.stack(list(sums.values()), axis=1), strict=True)
            if count
        }
        self.lines.write(json.dumps(line) + "\n")
        self.lines.flush()
        log.info("%s step %d of %d: loss %.3f", line["stage"], line["step"], line["steps"], line["loss"])
        self.pending.clear()
        self.since, self.waited = time.perf_counter(), 0.0
