"""Cross-entropy in chunks of positions: the logits of a whole sequence never exist, those nobody trains on not at all."""

from functools import partial

import jax
import jax.numpy as jnp

from lclm_jax.sharding import constrain, mesh_axes, splits, to_spec
from lclm_jax.typing import Array, Float, Int, typed


@typed
def token_losses(
    hidden: Float[Array, "B T D"],
    table: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    chunk: int,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Negative log-likelihood of every weighted target, in nats and float32, and whether it was the best guess (0 or 1).

    Both are zero where the weight is. Every device brings its weighted positions to the front and scores `chunk` of them at
    a time, once more in the backward pass; chunks of weight zero, half of an LCLM's positions and more, are skipped. The
    table's gradient adds up on each device and is reduced over them once.
    """
    entries = len(table)
    table = constrain(table, "vocab", "table")  # as it lies, or the compiler gathers the float32 master and casts it after
    table = jnp.pad(table, ((0, -entries % splits("logits")), (0, 0)))
    # On a mesh that splits no positions XLA refuses a reduction over those axes (RET_CHECK of its partitioner).
    rows = mesh_axes("batch", "length") if splits("batch") * splits("length") > 1 else ()
    score = partial(_score, chunk=chunk, entries=entries, rows=rows)
    if not rows:
        return score(hidden, constrain(table, "logits", None), targets, weights)
    positions = to_spec(("batch", "length"))
    specs = (positions, jax.P(), positions, positions)
    split = jax.shard_map(score, in_specs=specs, out_specs=(positions, positions), axis_names=set(rows), check_vma=False)
    return split(hidden, constrain(table, "logits", None), targets, weights)


@jax.named_scope("loss")
def _score(hidden: Array, table: Array, targets: Array, weights: Array, chunk: int, entries: int, rows: tuple[str, ...]):
    """`token_losses` of one device's positions, which `rows` split; entries of the table from `entries` on are padding."""
    shape, count = targets.shape, targets.size
    size = min(count, chunk)
    pieces = -(-count // size)
    order = jnp.argsort(weights.reshape(-1) == 0, stable=True)
    wide = table.astype(jnp.float32)  # so that gradients of the chunks add up in float32
    padding = jnp.arange(len(table)) >= entries

    def chunks(x):
        x = jnp.take(x.reshape(count, *x.shape[2:]), order, axis=0)
        return jnp.pad(x, ((0, pieces * size - count),) + ((0, 0),) * (x.ndim - 1)).reshape(pieces, size, *x.shape[1:])

    def score(x, y, w):
        logits = jnp.einsum("TD,VD->TV", x, wide.astype(table.dtype), preferred_element_type=jnp.float32)
        logits = jnp.where(padding, -jnp.inf, logits) if len(table) > entries else logits
        chosen = jnp.take_along_axis(logits, y[:, None], axis=-1)[:, 0]
        nll = jax.nn.logsumexp(logits, axis=-1) - chosen
        correct = chosen >= jnp.max(logits, axis=-1)
        return jnp.where(w > 0, nll, 0.0), jnp.where(w > 0, correct, False).astype(jnp.float32)

    def skip(x, y, w):
        nothing = jnp.zeros(y.shape, jnp.float32)
        return nothing, nothing

    @jax.checkpoint
    def one_chunk(_, piece):
        return None, jax.lax.cond(piece[0], score, skip, *piece[1:])

    weighted = chunks(weights)
    # All devices score a chunk or none does: where the vocabulary is split, they must meet.
    some = jax.lax.pmax(jnp.any(weighted > 0, axis=1), rows)
    _, results = jax.lax.scan(one_chunk, None, (some, chunks(hidden), chunks(targets), weighted))
    back = jnp.argsort(order)
    nll, correct = (x.reshape(-1)[:count][back].reshape(shape) for x in results)
    return nll, correct
