"""Losses of a batch: the only place that joins the model and its cross-entropy."""

import jax
import jax.numpy as jnp

from lclm_jax.batch import Batch
from lclm_jax.config import ModelConfig
from lclm_jax.model.lclm import apply, cast, output_table
from lclm_jax.model.loss import cross_entropy
from lclm_jax.typing import Array, Float, Params


def token_losses(
    params: Params, batch: Batch, config: ModelConfig, loss_chunk: int
) -> tuple[Float[Array, ""], Float[Array, "B T"], Float[Array, "B T"]]:
    """Return the weighted sum of a batch's losses, each loss, and 1 where the target was likeliest.

    Losses are in nats, and zero where the weight is. Computes in the model's dtype, whatever the
    parameters'; `loss_chunk` is the number of positions whose logits exist at once.
    """
    params = cast(params, config.dtype)
    hidden = apply(config, params, batch)
    table = output_table(params, config)
    return cross_entropy(hidden, table, batch.targets, batch.weights, loss_chunk)


def sum_by_group(
    batch: Batch, nll: Float[Array, "B T"], correct: Float[Array, "B T"], groups: int
) -> tuple[Array, Array, Array]:
    """Return sums of losses, correct guesses and trained tokens, each [groups], by `streams`."""
    weights = jax.nn.one_hot(batch.streams, groups) * batch.weights[..., None]
    summed_nll = jnp.einsum("BT,BTG->G", nll, weights)
    return summed_nll, jnp.einsum("BT,BTG->G", correct, weights), weights.sum((0, 1))
