"""From hidden states to latents: which tokens a latent stands for is data (`groups`), how they become one vector is here."""

import jax.numpy as jnp

from lclm_jax.typing import Array, Bool, Float, Int, typed


@typed
def membership(groups: Int[Array, "X W"], latents: int) -> Bool[Array, "X P W"]:
    """Row p marks the tokens of latent p. Groups [0 0 1 -1] with 2 latents: [[1 1 0 0], [0 0 1 0]]."""
    return groups[:, None, :] == jnp.arange(latents)[None, :, None]


@typed
def pool_mean(
    hidden: Float[Array, "X W E"], groups: Int[Array, "X W"], latents: int
) -> Float[Array, "X P E"]:
    """The mean over each latent's tokens, the last ragged group over its own length; zero for a latent without tokens.

    A matrix product, so any grouping costs the same: eos pooling is this mean over one marker token, and groups of
    different ratios may share a row. Sums are float32.
    """
    members = membership(groups, latents)
    counts = jnp.maximum(members.sum(axis=-1, keepdims=True), 1)
    sums = jnp.einsum(
        "XPW,XWE->XPE", members.astype(hidden.dtype), hidden, preferred_element_type=jnp.float32
    )
    return (sums / counts).astype(hidden.dtype)


@typed
def pool_concat(
    hidden: Float[Array, "X W E"], groups: Int[Array, "X W"], latents: int, ratio: int
) -> Float[Array, "X P RE"]:
    """Each latent's tokens side by side, a ragged group padded with zeros up to `ratio` tokens."""
    members = membership(groups, latents)
    first = jnp.argmax(members, axis=-1)
    index = jnp.minimum(first[..., None] + jnp.arange(ratio), hidden.shape[1] - 1)  # [X P R]
    own = jnp.take_along_axis(members, index, axis=-1) & (
        jnp.arange(ratio) < members.sum(axis=-1, keepdims=True)
    )
    rows = jnp.take_along_axis(hidden, index.reshape(len(index), -1, 1), axis=1).reshape(
        *index.shape, -1
    )
    return jnp.where(own[..., None], rows, 0).reshape(*index.shape[:2], -1)
