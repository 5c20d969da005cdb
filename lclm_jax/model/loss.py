"""Cross-entropy in chunks of positions: the logits of a whole sequence never exist, those nobody trains on not at all.

Gradients are made where the logits are, in the forward pass, so that logits are made once.
"""

from functools import partial

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
    """The weighted sum of the losses; each loss, in nats and float32; and whether the target was the best guess (0 or 1).

    The latter two are zero where the weight is. Only the sum has gradients, of `hidden` and `table`; those that nobody
    asks for are not made. Every device brings its weighted positions to the front and scores `chunk` of them at a time;
    chunks of weight zero, half of an LCLM's positions and more, are skipped. The table's gradient adds up on each device and
    is reduced over them once, before any gradient of a layer is made: none waits for it with a whole table in memory.

    Raises TypeError for a gradient of the losses by position alone.
    """
    return _cross_entropy(hidden, table, targets, weights, chunk)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _cross_entropy(hidden, table, targets, weights, chunk):
    return _on_devices(hidden, table, targets, weights, chunk, (False, False))[0]


def _forward(hidden, table, targets, weights, chunk):
    wanted = (hidden.perturbed, table.perturbed)
    return _on_devices(hidden.value, table.value, targets.value, weights.value, chunk, wanted)


def _backward(chunk, gradients, by_output):
    by_sum = by_output[0]
    if isinstance(by_sum, jax.custom_derivatives.SymbolicZero):
        raise TypeError(
            "expected gradients of cross_entropy's sum, its first result; got one of a loss by position; use weights"
        )
    return (
        *(None if one is None else (by_sum * one).astype(one.dtype) for one in gradients),
        None,
        None,
    )


_cross_entropy.defvjp(_forward, _backward, symbolic_zeros=True)


def _on_devices(hidden, table, targets, weights, chunk, wanted):
    """(sum, losses, whether right), and the sum's gradients of `hidden` and `table`, None where not `wanted`."""
    entries = len(table)
    table = constrain(
        table, "vocab", "table"
    )  # as it lies, or the compiler gathers the float32 master and casts it after
    table = jnp.pad(table, ((0, -entries % splits("logits")), (0, 0)))
    # On a mesh that splits no positions XLA refuses a reduction over those axes (RET_CHECK of its partitioner).
    rows = mesh_axes("batch", "length") if splits("batch") * splits("length") > 1 else ()
    score = partial(_score, chunk=chunk, entries=entries, rows=rows, wanted=wanted)
    if rows:
        positions = to_spec(("batch", "length"))
        specs = (positions, jax.P(), positions, positions)
        out = (positions, positions, (positions, jax.P()))
        score = jax.shard_map(
            score, in_specs=specs, out_specs=out, axis_names=set(rows), check_vma=False
        )
    nll, correct, (by_hidden, by_table) = score(
        hidden, constrain(table, "logits", None), targets, weights
    )
    if by_table is not None:
        by_table = constrain(by_table[:entries], "vocab", "table")
    gradients = jax.lax.optimization_barrier(
        (by_hidden, by_table)
    )  # or the compiler may reduce the table's at the very end
    return (jnp.sum(nll * weights), nll, correct), gradients


@jax.named_scope("loss")
def _score(
    hidden,
    table,
    targets,
    weights,
    *,
    chunk: int,
    entries: int,
    rows: tuple[str, ...],
    wanted: tuple[bool, bool],
):
    """`_on_devices` of one device's positions, which `rows` split; entries of the table from `entries` on are padding."""
    shape, count = targets.shape, targets.size
    size = min(count, chunk)
    pieces = -(-count // size)
    order = jnp.argsort(weights.reshape(-1) == 0, stable=True)
    padding = jnp.arange(len(table)) >= entries

    def chunks(x):
        x = jnp.take(x.reshape(count, *x.shape[2:]), order, axis=0)
        return jnp.pad(x, ((0, pieces * size - count),) + ((0, 0),) * (x.ndim - 1)).reshape(
            pieces, size, *x.shape[1:]
        )

    def score(by_table, x, y, w):
        logits = jnp.einsum("TD,VD->TV", x, table, preferred_element_type=jnp.float32)
        logits = jnp.where(padding, -jnp.inf, logits) if len(table) > entries else logits
        chosen = jnp.take_along_axis(logits, y[:, None], axis=-1)[:, 0]
        norm = jax.nn.logsumexp(logits, axis=-1)
        correct = chosen >= jnp.max(logits, axis=-1)
        target = jnp.arange(len(table)) == y[:, None]
        by_logit = ((jnp.exp(logits - norm[:, None]) - target) * w[:, None]).astype(table.dtype)
        by_x = jnp.einsum("TV,VD->TD", by_logit, table).astype(x.dtype) if wanted[0] else None
        if wanted[1]:
            by_table += jnp.einsum("TV,TD->VD", by_logit, x, preferred_element_type=jnp.float32)
        return by_table, (
            jnp.where(w > 0, norm - chosen, 0.0),
            jnp.where(w > 0, correct, False).astype(jnp.float32),
            by_x,
        )

    def skip(by_table, x, y, w):
        nothing = jnp.zeros(y.shape, jnp.float32)
        return by_table, (nothing, nothing, jnp.zeros_like(x) if wanted[0] else None)

    weighted = chunks(weights)
    # All devices score a chunk or none does: where the vocabulary is split, they must meet.
    some = jax.lax.pmax(jnp.any(weighted > 0, axis=1), rows)
    by_table, results = jax.lax.scan(
        lambda by_table, piece: jax.lax.cond(piece[0], score, skip, by_table, *piece[1:]),
        jnp.zeros(table.shape, jnp.float32) if wanted[1] else None,  # chunks add up in float32
        (some, chunks(hidden), chunks(targets), weighted),
    )
    back = jnp.argsort(order)
    nll, correct, by_hidden = jax.tree.map(
        lambda x: x.reshape(-1, *x.shape[2:])[:count][back].reshape(*shape, *x.shape[2:]), results
    )
    return (
        nll,
        correct,
        (by_hidden, None if by_table is None else jax.lax.psum(by_table.astype(table.dtype), rows)),
    )
