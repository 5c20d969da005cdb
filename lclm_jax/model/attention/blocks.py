"""Attention without whole matrices of scores, in plain JAX: for any chip, and the baseline that
kernels are tested against.

A part is a pair (output [B T N H] in float32, log-sum-exp [B T N]) over a subset of the keys;
`merge` combines two of them.
"""

from functools import partial

import jax
import jax.numpy as jnp

from lclm_jax.batch import Places
from lclm_jax.model.masks import attention_mask
from lclm_jax.typing import Array

QUERIES, KEYS = 128, 512  # in a block
HIDDEN = float(jnp.finfo(jnp.float32).min)  # score of a key that a query may not read
Part = tuple[Array, Array]


def read_keys(
    q: Array, k: Array, v: Array, queries: Places, keys: Places, causal: bool, end: Array
) -> Part:
    """Attention of queries [B T N H] to the first `end` of the keys and values [B K S H].

    Only forward. Each block of queries reads blocks of keys up to the last that any of them may
    read, so the work follows `end` and the causal mask, not the length of the arrays.
    """
    (b, t, n, h), (groups, s) = q.shape, k.shape[1:3]
    size, step = min(t, QUERIES), next((size for size in (KEYS, 256, 128) if s % size == 0), s)
    scaled = (q * h**-0.5).astype(q.dtype)

    def split(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, -t % size)) + ((0, 0),) * (x.ndim - 2))
        return x.reshape(b, -1, size, *x.shape[2:]).swapaxes(0, 1)

    index = jnp.arange(s)

    def read_block(block: tuple[Array, Places]) -> Part:
        query, at_query = block
        query = query.reshape(b, size, groups, n // groups, h).transpose(0, 2, 3, 1, 4)
        query = query.reshape(b, groups, -1, h)
        last = jnp.minimum(end, _last_readable(at_query, keys, index, causal))

        def add_keys(number: Array, sums: tuple[Array, Array, Array]):
            start = number * step
            take = partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=step)
            here = jax.tree.map(lambda x: take(x, axis=1), keys)
            mask = attention_mask(at_query, here, causal) & (take(index, axis=0) < end)
            return _add(sums, query, take(k, axis=2), take(v, axis=2), mask)

        shape = query.shape[:3]
        nothing = (jnp.zeros((*shape, h)), jnp.full(shape, HIDDEN / 2), jnp.zeros(shape))
        total, top, weight = jax.lax.fori_loop(0, -(-last // step), add_keys, nothing)
        attended = total / jnp.maximum(weight, jnp.finfo(jnp.float32).tiny)[..., None]
        lse = top + jnp.log(weight)
        attended = attended.reshape(b, n, size, h).transpose(0, 2, 1, 3)
        return attended, lse.reshape(b, n, size).transpose(0, 2, 1)

    parts = jax.lax.map(read_block, jax.tree.map(split, (scaled, queries)))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(b, -1, *x.shape[3:])[:, :t], parts)


def _last_readable(queries: Places, keys: Places, index: Array, causal: bool) -> Array:
    """One more than the last key that any query of a block may read."""
    seen = jnp.any(attention_mask(queries, keys, causal), axis=(0, 1))
    return jnp.max(jnp.where(seen, index + 1, 0))


def _add(sums, query: Array, keys: Array, values: Array, mask: Array):
    """Adds a block of keys to the running softmax of queries [B K X H]; X is all heads of a key's
    group times the queries of a block."""
    total, top, weight = sums
    scores = jnp.einsum("BKXH,BKSH->BKXS", query, keys, preferred_element_type=jnp.float32)
    by_head = scores.reshape(*scores.shape[:2], -1, *mask.shape[1:])
    scores = jnp.where(mask[:, None, None], by_head, HIDDEN).reshape(scores.shape)
    higher = jnp.maximum(top, jnp.max(scores, axis=-1))
    shrink, shares = jnp.exp(top - higher), jnp.exp(scores - higher[..., None])
    read = jnp.einsum(
        "BKXS,BKSH->BKXH", shares.astype(values.dtype), values, preferred_element_type=jnp.float32
    )
    total = total * shrink[..., None] + read
    return total, higher, weight * shrink + jnp.sum(shares, axis=-1)


def merge(first: Part, second: Part) -> Array:
    """Attention over the keys of both parts [B T N H]; zero where neither read anything."""
    lse = jnp.maximum(first[1], second[1])
    lse = jnp.maximum(lse, HIDDEN)  # finite where nothing was read
    one, other = (jnp.exp(part[1] - lse)[..., None] for part in (first, second))
    attended = first[0] * one + second[0] * other
    return attended / jnp.maximum(one + other, jnp.finfo(jnp.float32).tiny)


def merge_shards(part: Part, axes: tuple[str, ...]) -> Part:
    """One part from those of the devices along mesh axes, each of which read its own keys."""
    if not axes:
        return part
    attended, lse = part
    highest = jnp.maximum(jax.lax.pmax(lse, axes), HIDDEN)
    weight = jnp.exp(lse - highest)
    total = jax.lax.psum(weight, axes)
    attended = jax.lax.psum(attended * weight[..., None], axes)
    return attended / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)[..., None], (
        highest + jnp.log(total)
    )
