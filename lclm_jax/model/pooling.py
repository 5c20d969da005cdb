"""Pooling of hidden states to latents.

The data says which tokens a latent stands for (`groups`); this module says how they become one
vector.
"""

import jax.numpy as jnp

from lclm_jax.typing import Array, Bool, Float, Int, typed


@typed
def membership(groups: Int[Array, "A W"], latents: int) -> Bool[Array, "A P W"]:
    """Mark the tokens of every latent: row p of a window has those of its latent p.

    Groups [0 0 1 -1] with 2 latents give [[1 1 0 0], [0 0 1 0]].
    """
    return groups[:, None, :] == jnp.arange(latents)[None, :, None]


@typed
def pool_mean(
    hidden: Float[Array, "A W E"], groups: Int[Array, "A W"], latents: int
) -> Float[Array, "A P E"]:
    """Return the mean over each latent's tokens, zero for a latent without tokens.

    A matrix product, so any grouping costs the same: a ragged last group divides by its own size,
    eos pooling is the mean over one marker token, and groups of different ratios may share a row.
    Sums are float32.
    """
    members = membership(groups, latents)
    counts = jnp.maximum(members.sum(axis=-1, keepdims=True), 1)
    sums = jnp.einsum(
        "APW,AWE->APE", members.astype(hidden.dtype), hidden, preferred_element_type=jnp.float32
    )
    return (sums / counts).astype(hidden.dtype)


@typed
def pool_concat(
    hidden: Float[Array, "A W E"], groups: Int[Array, "A W"], latents: int, ratio: int
) -> Float[Array, "A P I"]:
    """Join each latent's tokens, I = R * E; zeros fill a group of less than `ratio` tokens."""
    members = membership(groups, latents)
    counts = members.sum(axis=-1, keepdims=True)
    first = jnp.argmax(members, axis=-1)

    # Numbers [A P R] of the tokens from the first of a group on, and which of them belong to it.
    offsets = jnp.arange(ratio)
    index = jnp.minimum(first[..., None] + offsets, hidden.shape[1] - 1)
    own = jnp.take_along_axis(members, index, axis=-1) & (offsets < counts)

    windows, latents, _ = index.shape
    tokens = jnp.take_along_axis(hidden, index.reshape(windows, -1, 1), axis=1)
    tokens = jnp.where(own[..., None], tokens.reshape(*index.shape, -1), 0)
    return tokens.reshape(windows, latents, -1)
