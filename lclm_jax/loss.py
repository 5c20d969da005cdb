"""Cross-entropy in chunks of positions: the logits of a whole sequence never exist, those nobody trains on not at all."""

import jax
import jax.numpy as jnp

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

    Both are zero where the weight is. Each row's weighted positions are brought to its front, then `chunk` positions of
    all rows are scored at a time, once more in the backward pass; chunks of weight zero, half of an LCLM's positions
    and more, are skipped.
    """
    b, t, _ = hidden.shape
    columns = max(1, min(t, chunk // b))
    pieces = -(-t // columns)
    order = jnp.argsort(weights == 0, axis=1, stable=True)

    def chunks(x):
        x = jnp.take_along_axis(x, order.reshape(b, t, *[1] * (x.ndim - 2)), axis=1)
        x = jnp.pad(x, ((0, 0), (0, pieces * columns - t)) + ((0, 0),) * (x.ndim - 2))
        return x.reshape(b, pieces, columns, *x.shape[2:]).swapaxes(0, 1)

    def score(x, y, w):
        logits = jnp.einsum("BTD,VD->BTV", x, table, preferred_element_type=jnp.float32)
        chosen = jnp.take_along_axis(logits, y[..., None], axis=-1)[..., 0]
        nll = jax.nn.logsumexp(logits, axis=-1) - chosen
        correct = chosen >= jnp.max(logits, axis=-1)
        return jnp.where(w > 0, nll, 0.0), jnp.where(w > 0, correct, False).astype(jnp.float32)

    def skip(x, y, w):
        nothing = jnp.zeros(y.shape, jnp.float32)
        return nothing, nothing

    @jax.checkpoint
    def one_chunk(_, piece):
        return None, jax.lax.cond(jnp.any(piece[2] > 0), score, skip, *piece)

    _, results = jax.lax.scan(one_chunk, None, (chunks(hidden), chunks(targets), chunks(weights)))
    back = jnp.argsort(order, axis=1)
    nll, correct = (jnp.take_along_axis(x.swapaxes(0, 1).reshape(b, pieces * columns)[:, :t], back, axis=1) for x in results)
    return nll, correct
