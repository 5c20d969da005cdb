"""Cross-entropy in chunks of positions.

The logits of a whole sequence never exist, and those of positions without weight are not made.
Gradients are made with the losses, in the forward pass, so that logits are made once.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lclm_jax.distributed.sharding import constrain, mesh_axes, splits, to_spec
from lclm_jax.typing import Array, Float, Int, typed


@typed
def cross_entropy(
    hidden: Float[Array, "B T D"],
    table: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    chunk: int,
) -> tuple[Float[Array, ""], Float[Array, "B T"], Float[Array, "B T"]]:
    """Return the weighted sum of the losses, each loss, and whether the target was the best guess.

    Losses are in nats and float32, the third result is 0 or 1; both are zero where the weight is.

    Only the sum has gradients, of `hidden` and `table`; those that are not asked for are not made.
    Every device moves its weighted positions to the front and scores `chunk` of them at a time;
    chunks without weight, half of an LCLM's positions and more, are skipped. The table's gradient
    adds up on each device and is reduced over them once, before any gradient of a layer is made:
    none waits for it with a whole table in memory.

    Raises TypeError for a gradient of the losses by position.
    """
    return _cross_entropy(hidden, table, targets, weights, chunk)


class Wanted(NamedTuple):
    """Flags for the gradients of the sum that are asked for."""

    hidden: bool
    table: bool


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _cross_entropy(hidden, table, targets, weights, chunk):
    results, _ = _score_on_devices(hidden, table, targets, weights, chunk, Wanted(False, False))
    return results


def _forward(hidden, table, targets, weights, chunk):
    wanted = Wanted(hidden.perturbed, table.perturbed)
    arrays = (hidden.value, table.value, targets.value, weights.value)
    return _score_on_devices(*arrays, chunk, wanted)


def _backward(chunk, gradients, output_gradients):
    sum_gradient = output_gradients[0]
    if isinstance(sum_gradient, jax.custom_derivatives.SymbolicZero):
        raise TypeError(
            "expected gradients of cross_entropy's sum, its first result; got those of a loss by "
            "position; use weights"
        )

    def scale(gradient):
        return None if gradient is None else (sum_gradient * gradient).astype(gradient.dtype)

    return *map(scale, gradients), None, None


_cross_entropy.defvjp(_forward, _backward, symbolic_zeros=True)


def _score_on_devices(hidden, table, targets, weights, chunk: int, wanted: Wanted):
    """Return (sum, losses, correct) and the sum's gradients of `hidden` and `table`.

    A gradient that is not wanted is None.
    """
    vocab = len(table)
    # The table in its own dtype, or the compiler gathers the float32 master and casts it after.
    table = constrain(table, "vocab", "table")
    table = jnp.pad(table, ((0, -vocab % splits("logits")), (0, 0)))
    table = constrain(table, "logits", None)

    # On a mesh that splits no positions XLA's partitioner refuses a reduction over those axes.
    axes = mesh_axes("batch", "length") if splits("batch") * splits("length") > 1 else ()
    score = partial(_score, chunk=chunk, vocab=vocab, axes=axes, wanted=wanted)
    if axes:
        positions, whole = to_spec(("batch", "length")), jax.P()
        score = jax.shard_map(
            score,
            in_specs=(positions, whole, positions, positions),
            out_specs=(positions, positions, (positions, whole)),
            axis_names=set(axes),
            check_vma=False,
        )
    losses, correct, (hidden_gradient, table_gradient) = score(hidden, table, targets, weights)

    if table_gradient is not None:
        table_gradient = constrain(table_gradient[:vocab], "vocab", "table")
    # Without this barrier the compiler may reduce the table's gradient at the very end.
    gradients = jax.lax.optimization_barrier((hidden_gradient, table_gradient))
    return (jnp.sum(losses * weights), losses, correct), gradients


@jax.named_scope("loss")
def _score(
    hidden,
    table,
    targets,
    weights,
    *,
    chunk: int,
    vocab: int,
    axes: tuple[str, ...],
    wanted: Wanted,
):
    """Score one device's positions, which the mesh axes `axes` split.

    Returns (losses, correct, (gradient of hidden, gradient of table)). Rows of the table from
    `vocab` on are padding.
    """
    chunks = _Chunks(targets.shape, min(targets.size, chunk), _weighted_first(weights))
    score = partial(_score_chunk, table, vocab, wanted)
    skip = partial(_skip_chunk, wanted)

    def score_or_skip(table_gradient, inputs):
        has_weight, *arrays = inputs
        return jax.lax.cond(has_weight, score, skip, table_gradient, *arrays)

    weights = chunks.cut(weights)
    # All devices score a chunk or none does: where the vocabulary is split, they must meet.
    has_weight = jax.lax.pmax(jnp.any(weights > 0, axis=1), axes)
    # The gradients of chunks add up in float32.
    nothing = jnp.zeros(table.shape, jnp.float32) if wanted.table else None
    inputs = (has_weight, chunks.cut(hidden), chunks.cut(targets), weights)
    table_gradient, by_chunk = jax.lax.scan(score_or_skip, nothing, inputs)

    losses, correct, hidden_gradient = chunks.join(by_chunk)
    if table_gradient is not None:
        table_gradient = jax.lax.psum(table_gradient.astype(table.dtype), axes)
    return losses, correct, (hidden_gradient, table_gradient)


def _weighted_first(weights: Array) -> Array:
    """Return the order of positions in which those with weight come first."""
    return jnp.argsort(weights.reshape(-1) == 0, stable=True)


@dataclass(frozen=True)
class _Chunks:
    """Positions [B T] in an order of their own, cut into Z chunks of `size`."""

    shape: tuple[int, ...]
    size: int
    order: Array

    def cut(self, x: Array) -> Array:
        """Reorder and cut an array, [B T ...] -> [Z size ...]; zeros fill the last chunk."""
        count = len(self.order)
        number = -(-count // self.size)
        x = jnp.take(x.reshape(count, *x.shape[2:]), self.order, axis=0)
        x = jnp.pad(x, ((0, number * self.size - count),) + ((0, 0),) * (x.ndim - 1))
        return x.reshape(number, self.size, *x.shape[1:])

    def join(self, tree):
        """Undo `cut` for every array of a tree."""
        inverse = jnp.argsort(self.order)

        def join(x: Array) -> Array:
            x = x.reshape(-1, *x.shape[2:])[: len(inverse)][inverse]
            return x.reshape(*self.shape, *x.shape[1:])

        return jax.tree.map(join, tree)


def _score_chunk(table, vocab: int, wanted: Wanted, table_gradient, hidden, targets, weights):
    """Add this chunk to the table's gradient; return it and (losses, correct, hidden gradient).

    The chunk's positions are an axis T: hidden [T D], targets [T] and weights [T].
    """
    logits = jnp.einsum("TD,VD->TV", hidden, table, preferred_element_type=jnp.float32)
    if len(table) > vocab:
        logits = jnp.where(jnp.arange(len(table)) >= vocab, -jnp.inf, logits)
    target_logits = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    norms = jax.nn.logsumexp(logits, axis=-1)
    correct = target_logits >= jnp.max(logits, axis=-1)

    is_target = jnp.arange(len(table)) == targets[:, None]
    probabilities = jnp.exp(logits - norms[:, None])
    logit_gradient = ((probabilities - is_target) * weights[:, None]).astype(table.dtype)
    hidden_gradient = None
    if wanted.hidden:
        hidden_gradient = jnp.einsum("TV,VD->TD", logit_gradient, table).astype(hidden.dtype)
    if wanted.table:
        table_gradient += jnp.einsum(
            "TV,TD->VD", logit_gradient, hidden, preferred_element_type=jnp.float32
        )

    losses = jnp.where(weights > 0, norms - target_logits, 0.0)
    correct = jnp.where(weights > 0, correct, False).astype(jnp.float32)
    return table_gradient, (losses, correct, hidden_gradient)


def _skip_chunk(wanted: Wanted, table_gradient, hidden, targets, weights):
    """Return what `_score_chunk` does for a chunk without weight."""
    nothing = jnp.zeros(targets.shape, jnp.float32)
    return table_gradient, (nothing, nothing, jnp.zeros_like(hidden) if wanted.hidden else None)
