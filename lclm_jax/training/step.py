"""One training step as a pure function: loss, gradients, update and metrics."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lclm_jax.batch import Batch
from lclm_jax.config import Config, StageConfig
from lclm_jax.distributed.sharding import constrain
from lclm_jax.model.lclm import cast
from lclm_jax.model.params import Flat, component, flatten, unflatten
from lclm_jax.scoring import sum_by_group, token_losses
from lclm_jax.training.optim import learning_rates, split_trained, update
from lclm_jax.training.state import TrainState
from lclm_jax.typing import Array

Metrics = dict[str, Any]
# Sums by stream: of losses, of right best guesses, and of trained tokens.
STREAM_SUMS = ("stream_nll", "stream_correct", "stream_tokens")


def train_step(
    state: TrainState, batch: Batch, *, config: Config, stage: StageConfig
) -> tuple[TrainState, Metrics]:
    """Update a stage's trained parameters once; return the state and metrics, still on device.

    Where the loss or any gradient is not finite, no parameter and no moment changes. After
    `run.max_skipped_steps` such steps in a row nothing changes any more, so that their cause can
    be examined in the state that met it.
    """
    trained, frozen = split_trained(state.params, stage)
    loss, streams, gradients = gradients_of(trained, frozen, batch, config, stage)
    norm = optax.tree.norm(gradients)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    going = state.failing < config.run.max_skipped_steps
    has_contexts = jnp.any(batch.slots >= 0)
    params, moments = update(
        state.params,
        state.moments,
        gradients,
        stage,
        config.optimizer,
        finite & going,
        has_contexts,
    )
    failing = jnp.where(finite & going, 0, state.failing + 1)
    after = TrainState(params, moments, state.step + 1, state.skipped + ~(finite & going), failing)
    moved = {path: x - trained[path] for path, x in flatten(params).items() if path in trained}
    metrics = {
        "loss": loss,
        "gradient_norm": norm,
        "finite": finite,
        "skipped": after.skipped,
        "failing": after.failing,
        **streams,
        "context_tokens": jnp.sum(batch.windows.segments > 0),
        "latents": jnp.sum(batch.slots >= 0),
        "decoder_tokens": jnp.sum(batch.segments > 0),
        "fill": jnp.mean(batch.segments > 0),
        "window_fill": jnp.mean(batch.windows.segments > 0),
        **{f"gradient_norm/{name}": norm for name, norm in component_norms(gradients).items()},
        **{f"update_norm/{name}": norm for name, norm in component_norms(moved).items()},
        **{f"parameter_norm/{name}": norm for name, norm in component_norms(trained).items()},
        **{f"rate/{name}": rate for name, rate in learning_rates(state.moments, stage).items()},
    }
    return after, metrics


def component_norms(arrays: Flat) -> dict[str, Array]:
    """Return the norm over all arrays of each component."""
    parts = sorted({component(path) for path in arrays})
    return {
        part: optax.tree.norm([x for path, x in arrays.items() if component(path) == part])
        for part in parts
    }


def gradients_of(
    trained: Flat, frozen: Flat, batch: Batch, config: Config, stage: StageConfig
) -> tuple[Array, Metrics, Flat]:
    """Return the mean loss over the batch's trained tokens, STREAM_SUMS, and float32 gradients.

    With `run.micro_batches` the rows are read one part after another and their gradients are
    summed; each trained token has the same weight.
    """
    trained, frozen = cast(trained, config.model.dtype), cast(frozen, config.model.dtype)
    total = jnp.maximum(jnp.sum(batch.weights), 1.0)
    differentiate = jax.value_and_grad(objective, has_aux=True)

    def differentiate_rows(rows: Batch):
        (loss, (nll, correct)), gradients = differentiate(trained, frozen, rows, config, total)
        sums = stream_sums(rows, nll, correct, len(stage.streams))
        return loss, sums, jax.tree.map(lambda x: x.astype(jnp.float32), gradients)

    count = config.run.micro_batches
    if count == 1:
        return differentiate_rows(batch)
    shapes = jax.eval_shape(differentiate_rows, batch)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    parts = jax.tree.map(partial(_split_rows, count=count), batch)
    return jax.lax.scan(
        lambda sums, rows: (jax.tree.map(jnp.add, sums, differentiate_rows(rows)), None),
        zeros,
        parts,
    )[0]


def _split_rows(x: jax.Array, count: int) -> jax.Array:
    """Reshape [B ...] to [count, B / count ...]; every device splits the rows it has."""
    parts = x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)
    return constrain(parts, None, "batch", *[None] * (x.ndim - 1))


def objective(
    trained: Flat, frozen: Flat, batch: Batch, config: Config, total: Array | None = None
):
    """Return the loss to differentiate, and (loss, correct) per position.

    `correct` is true where the best guess is right. The loss is the sum over trained tokens,
    divided by `total`, by default their number.
    """
    params = unflatten({**trained, **frozen})
    summed, nll, correct = token_losses(params, batch, config.model, config.run.loss_chunk)
    total = jnp.maximum(jnp.sum(batch.weights), 1.0) if total is None else total
    return summed / total, (nll, correct)


def stream_sums(batch: Batch, nll: Array, correct: Array, count: int) -> Metrics:
    """Return STREAM_SUMS, each [count] by stream."""
    return dict(zip(STREAM_SUMS, sum_by_group(batch, nll, correct, count), strict=True))
