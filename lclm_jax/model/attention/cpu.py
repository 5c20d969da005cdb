"""Attention on CPUs: blocks of queries, each against the range of keys that it may read.

Packed examples are short beside their row, so most scores are never made. The backward pass makes
the scores of a range again.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lclm_jax.batch import Places
from lclm_jax.model.attention.blocks import UNREADABLE, cut_into_blocks
from lclm_jax.model.attention.shards import SAVED, RowAxes, on_shards, sequence_specs
from lclm_jax.model.masks import attention_mask
from lclm_jax.typing import Array

BLOCK = 128  # queries in a block, and keys in the shortest range

_einsum = partial(jnp.einsum, preferred_element_type=jnp.float32)


def attend_cpu(q, k, v, places: Places, causal: bool, axes: RowAxes) -> Array:
    """Compute the attention of sequences [B T N H] to themselves, a block of queries at a time.

    Ranges of keys have one of a few lengths, and each is compiled by itself. Query heads that share
    a key head lie side by side in one product.
    """

    def attend_rows(q, k, v, queries, keys):
        b, t, n, h = q.shape
        kv_heads = k.shape[1]
        group = n // kv_heads
        size = min(t, BLOCK)
        cut = partial(cut_into_blocks, size=size)

        blocks = cut(q.reshape(b, t, kv_heads, group, h))
        blocks = jnp.moveaxis(blocks, 2, 4)
        blocks = blocks.reshape(b, -1, kv_heads, group * size, h)
        rows = (blocks, k, v, jax.tree.map(cut, queries), keys)
        attended = jax.lax.map(lambda row: _read_row(causal, *row), rows)
        attended = attended.reshape(b, -1, kv_heads, group, size, h)
        attended = jnp.moveaxis(attended, 4, 2)
        return attended.reshape(b, -1, n, h)[:, :t]

    specs, out = sequence_specs(axes)
    return on_shards(attend_rows, specs, out)(q, k, v, places, places)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _read_row(causal: bool, q: Array, k: Array, v: Array, queries: Places, keys: Places) -> Array:
    """Compute what blocks of one row's queries [Z K Q H] read of its keys and values [K S H].

    Places are those of the queries [Z T] and of the keys [S].
    """
    return _read_row_forward(causal, q, k, v, queries, keys)[0]


def _read_row_forward(causal: bool, q, k, v, queries: Places, keys: Places):
    # Without this barrier XLA hoists the masks of all blocks out of a scan over layers and keeps
    # them.
    q, queries, keys = jax.lax.optimization_barrier((q, queries, keys))

    def read(start, length, q, queries):
        take = _range_taker(start, length)
        scores = _scores(q, take(k), queries, keys, start, causal)
        top = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        attended = _einsum("KQS,KSH->KQH", weights.astype(v.dtype), take(v)) / total
        return attended.astype(q.dtype), top + jnp.log(total)

    def read_block(block):
        return _on_range(read, block[1], keys, causal, *block)

    attended, lse = jax.lax.map(read_block, (q, queries))
    attended, lse = checkpoint_name((attended, lse), SAVED)
    return attended, (q, k, v, queries, keys, attended, lse)


def _read_row_backward(causal: bool, residuals, gradient: Array):
    q, k, v, queries, keys, attended, lse = residuals

    def read(start, length, sums, q, queries, attended, lse, gradient):
        take = _range_taker(start, length)
        shares = jnp.exp(_scores(q, take(k), queries, keys, start, causal) - lse)
        share_gradient = _einsum("KQH,KSH->KQS", gradient, take(v))
        products = gradient.astype(jnp.float32) * attended.astype(jnp.float32)
        mean = jnp.sum(products, axis=-1, keepdims=True)
        score_gradient = shares * (share_gradient - mean) * q.shape[-1] ** -0.5
        score_gradient = score_gradient.astype(q.dtype)

        key_gradient = _einsum("KQS,KQH->KSH", score_gradient, q)
        value_gradient = _einsum("KQS,KQH->KSH", shares.astype(q.dtype), gradient)
        update = partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=1)
        sums = (
            update(sums[0], take(sums[0]) + key_gradient),
            update(sums[1], take(sums[1]) + value_gradient),
        )
        return sums, jnp.einsum("KQS,KSH->KQH", score_gradient, take(k))

    def read_block(sums, block):
        return _on_range(read, block[1], keys, causal, sums, *block)

    nothing = (jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32))
    blocks = (q, queries, attended, lse, gradient)
    sums, query_gradient = jax.lax.scan(read_block, nothing, blocks)
    key_gradient, value_gradient = sums
    return query_gradient, key_gradient.astype(k.dtype), value_gradient.astype(v.dtype), None, None


_read_row.defvjp(_read_row_forward, _read_row_backward)


def _range_taker(start: Array, length: int) -> Callable[[Array], Array]:
    """Return a function that takes the range of keys or values from arrays [K S H]."""
    slice_axis = jax.lax.dynamic_slice_in_dim
    return partial(slice_axis, start_index=start, slice_size=length, axis=1)


def _on_range(read: Callable, queries: Places, keys: Places, causal: bool, *inputs):
    """Call `read(start, length, *inputs)` on a range with all keys [S] these queries may read."""
    size = len(queries.segments)
    s = len(keys.segments)
    doublings = (-(-s // size) - 1).bit_length()
    lengths = [min(s, size << i) for i in range(doublings + 1)]
    if len(lengths) == 1:  # jaxlib 0.11.2 crashes on the empty reduction below
        return read(jnp.int32(0), s, *inputs)

    readable = jnp.any(_row_mask(queries, keys, causal), axis=0)
    first = jnp.argmax(readable)
    end = s - jnp.argmax(readable[::-1])
    end = jnp.where(jnp.any(readable), end, 0)
    too_short = jnp.array(lengths[:-1], jnp.int32) < end - first
    choice = jnp.sum(too_short)

    def reader(length: int) -> Callable:
        return lambda *inputs: read(jnp.minimum(first, s - length), length, *inputs)

    return jax.lax.switch(choice, list(map(reader, lengths)), *inputs)


def _scores(q: Array, k: Array, queries: Places, keys: Places, start: Array, causal: bool) -> Array:
    """Return scores [K Q S] in float32, the least number where a query may not read a key.

    `k` is the range of keys from `start` on; `keys` are the places of all.
    """
    scores = _einsum("KQH,KSH->KQS", q, k)
    take = partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=k.shape[1])
    mask = _row_mask(queries, jax.tree.map(take, keys), causal)
    by_head = scores.reshape(len(scores), -1, *mask.shape)
    scaled = by_head * q.shape[-1] ** -0.5
    return jnp.where(mask, scaled, UNREADABLE).reshape(scores.shape)


def _row_mask(queries: Places, keys: Places, causal: bool) -> Array:
    """Return the `attention_mask` [T S] of one row's places."""
    queries, keys = jax.tree.map(lambda x: x[None], (queries, keys))
    return attention_mask(queries, keys, causal)[0]
