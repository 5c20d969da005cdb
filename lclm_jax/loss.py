"""Cross-entropy in chunks of positions: the logits of a whole sequence never exist."""

import jax
import jax.numpy as jnp

from lclm_jax.typing import Array, Float, Int, typed


@typed
def token_losses(
    hidden: Float[Array, "B T D"], table: Float[Array, "V D"], targets: Int[Array, "B T"], chunk: int
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Negative log-likelihood in nats of every target, in float32, and whether it was the most likely token (0 or 1).

    Computes `chunk` positions at a time, T / chunk chunks of all rows, and again in the backward pass.
    """
    b, t, d = hidden.shape
    columns = max(1, min(t, chunk // b))
    padding = -t % columns
    pieces = (t + padding) // columns

    def split(x):
        x = jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))
        return x.reshape(b, pieces, columns, *x.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint
    def one_chunk(_, piece):
        x, y = piece
        logits = jnp.einsum("BTD,VD->BTV", x, table, preferred_element_type=jnp.float32)
        chosen = jnp.take_along_axis(logits, y[..., None], axis=-1)[..., 0]
        nll = jax.nn.logsumexp(logits, axis=-1) - chosen
        return None, (nll, (jnp.argmax(logits, axis=-1) == y).astype(jnp.float32))

    _, results = jax.lax.scan(one_chunk, None, (split(hidden), split(targets)))
    nll, correct = (x.swapaxes(0, 1).reshape(b, t + padding)[:, :t] for x in results)
    return nll, correct
