"""Attention without whole matrices of scores, in plain JAX.

It runs on any chip and is the baseline that kernels are tested against.

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
UNREADABLE = float(jnp.finfo(jnp.float32).min)  # score of a key that a query may not read
TINY = jnp.finfo(jnp.float32).tiny
Part = tuple[Array, Array]
Sums = tuple[Array, Array, Array]  # of a running softmax: weighted values, top score, weight


def read_keys(
    q: Array, k: Array, v: Array, queries: Places, keys: Places, causal: bool, end: Array
) -> Part:
    """Read the first `end` of the keys and values [B K S H] for queries [B T N H].

    Only forward. Each block of queries reads blocks of keys up to the last that any of them may
    read, so the work follows `end` and the causal mask, not the length of the arrays.
    """
    b, t, n, h = q.shape
    kv_heads, s = k.shape[1:3]
    size = min(t, QUERIES)
    step = next((step for step in (KEYS, 256, 128) if s % step == 0), s)
    scaled = (q * h**-0.5).astype(q.dtype)
    columns = jnp.arange(s)

    def cut(x: Array) -> Array:
        return cut_into_blocks(x, size).swapaxes(0, 1)

    def read_block(block: tuple[Array, Places]) -> Part:
        q, queries = block
        q = q.reshape(b, size, kv_heads, n // kv_heads, h).transpose(0, 2, 3, 1, 4)
        q = q.reshape(b, kv_heads, -1, h)
        block_end = jnp.minimum(end, _readable_end(queries, keys, columns, causal))

        def add_keys(number: Array, sums: Sums) -> Sums:
            take = partial(jax.lax.dynamic_slice_in_dim, start_index=number * step, slice_size=step)
            here = jax.tree.map(lambda x: take(x, axis=1), keys)
            mask = attention_mask(queries, here, causal) & (take(columns, axis=0) < end)
            return _add_keys(sums, q, take(k, axis=2), take(v, axis=2), mask)

        shape = q.shape[:3]
        nothing = (
            jnp.zeros((*shape, h)),
            jnp.full(shape, UNREADABLE / 2),
            jnp.zeros(shape),
        )
        stop = -(-block_end // step)
        total, top, weight = jax.lax.fori_loop(0, stop, add_keys, nothing)
        attended = total / jnp.maximum(weight, TINY)[..., None]
        lse = top + jnp.log(weight)
        attended = attended.reshape(b, n, size, h).transpose(0, 2, 1, 3)
        return attended, lse.reshape(b, n, size).transpose(0, 2, 1)

    def join(x: Array) -> Array:
        joined = x.swapaxes(0, 1).reshape(b, -1, *x.shape[3:])
        return joined[:, :t]

    parts = jax.lax.map(read_block, jax.tree.map(cut, (scaled, queries)))
    return jax.tree.map(join, parts)


def cut_into_blocks(x: Array, size: int) -> Array:
    """Cut the second axis of an array, [B T ...] -> [B Z size ...]; zeros fill the last block."""
    widths = [(0, 0)] * x.ndim
    widths[1] = (0, -x.shape[1] % size)
    padded = jnp.pad(x, widths)
    return padded.reshape(len(x), -1, size, *x.shape[2:])


def _readable_end(queries: Places, keys: Places, columns: Array, causal: bool) -> Array:
    """Return one more than the last column of a key that any query of a block may read."""
    readable = jnp.any(attention_mask(queries, keys, causal), axis=(0, 1))
    return jnp.max(jnp.where(readable, columns + 1, 0))


def _add_keys(sums: Sums, q: Array, keys: Array, values: Array, mask: Array) -> Sums:
    """Add a block of keys [B K S H] to the running softmax of queries [B K Q H]."""
    total, top, weight = sums
    scores = jnp.einsum("BKQH,BKSH->BKQS", q, keys, preferred_element_type=jnp.float32)
    by_head = scores.reshape(*scores.shape[:2], -1, *mask.shape[1:])
    scores = jnp.where(mask[:, None, None], by_head, UNREADABLE).reshape(scores.shape)

    new_top = jnp.maximum(top, jnp.max(scores, axis=-1))
    shrink = jnp.exp(top - new_top)
    shares = jnp.exp(scores - new_top[..., None])
    read = jnp.einsum(
        "BKQS,BKSH->BKQH", shares.astype(values.dtype), values, preferred_element_type=jnp.float32
    )
    total = total * shrink[..., None] + read
    return total, new_top, weight * shrink + jnp.sum(shares, axis=-1)


def merge(first: Part, second: Part) -> Array:
    """Return attention over the keys of both parts [B T N H], zero where neither read any."""
    top = jnp.maximum(first[1], second[1])
    top = jnp.maximum(top, UNREADABLE)  # finite where nothing was read
    first_weight = jnp.exp(first[1] - top)[..., None]
    second_weight = jnp.exp(second[1] - top)[..., None]
    total = first[0] * first_weight + second[0] * second_weight
    return total / jnp.maximum(first_weight + second_weight, TINY)


def merge_shards(part: Part, axes: tuple[str, ...]) -> Part:
    """Merge the parts of the devices along mesh axes, each of which read its own keys."""
    if not axes:
        return part
    attended, lse = part
    top = jnp.maximum(jax.lax.pmax(lse, axes), UNREADABLE)
    weight = jnp.exp(lse - top)
    total = jax.lax.psum(weight, axes)
    attended = jax.lax.psum(attended * weight[..., None], axes)
    return attended / jnp.maximum(total, TINY)[..., None], top + jnp.log(total)
