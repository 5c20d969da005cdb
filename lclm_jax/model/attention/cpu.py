"""Attention on CPUs: blocks of queries, each against the stretch of keys that it may read.

Packed examples are short beside their row, so most scores are never made. The backward pass makes
the scores of a stretch again.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lclm_jax.batch import Places
from lclm_jax.model.attention.shards import SAVED, RowAxes, on_shards, sequence_specs
from lclm_jax.model.masks import attention_mask
from lclm_jax.typing import Array

STRETCH = 128  # queries in a block, and the shortest stretch of keys


def stretched(q, k, v, places: Places, causal: bool, axes: RowAxes) -> Array:
    """Attention of a sequence [B T N H] to itself, a few queries at a time.

    Stretches have few lengths, and each is compiled by itself. Heads that share keys and values
    lie side by side in one product.
    """

    def local(q, k, v, queries, keys):
        (b, t, n, h), groups = q.shape, k.shape[1]
        size = min(t, STRETCH)

        def blocks(x):
            x = jnp.pad(x, ((0, 0), (0, -t % size)) + ((0, 0),) * (x.ndim - 2))
            return x.reshape(b, -1, size, *x.shape[2:])

        heads_first = jnp.moveaxis(blocks(q.reshape(b, t, groups, -1, h)), 2, 4)
        heads_first = heads_first.reshape(b, -1, groups, n // groups * size, h)
        one_row = partial(read_row, causal)
        rows = (heads_first, k, v, jax.tree.map(blocks, queries), keys)
        attended = jax.lax.map(lambda row: one_row(*row), rows)
        attended = attended.reshape(b, -1, groups, n // groups, size, h)
        return jnp.moveaxis(attended, 4, 2).reshape(b, -1, n, h)[:, :t]

    specs, out = sequence_specs(axes)
    return on_shards(local, specs, out)(q, k, v, places, places)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def read_row(causal: bool, q: Array, k: Array, v: Array, queries: Places, keys: Places) -> Array:
    """What blocks of one row's queries [I K X H] read of k and v [K S H]; X is the queries of all heads that share a key."""
    return _read_row_forward(causal, q, k, v, queries, keys)[0]


def _read_row_forward(causal, q, k, v, queries, keys):
    # Without this barrier XLA hoists the masks of all blocks out of a scan over layers and keeps them.
    q, queries, keys = jax.lax.optimization_barrier((q, queries, keys))

    def read(start, length, q, queries):
        stretch = partial(
            jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=length, axis=1
        )
        scores = _scores(q, stretch(k), queries, keys, start, causal)
        top = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        attended = (
            jnp.einsum(
                "KXS,KSH->KXH",
                weights.astype(v.dtype),
                stretch(v),
                preferred_element_type=jnp.float32,
            )
            / total
        )
        return attended.astype(q.dtype), top + jnp.log(total)

    attended, lse = jax.lax.map(
        lambda block: _on_stretch(read, block[1], keys, causal, *block), (q, queries)
    )
    attended, lse = checkpoint_name((attended, lse), SAVED)
    return attended, (q, k, v, queries, keys, attended, lse)


def _read_row_backward(causal, kept, gradient):
    q, k, v, queries, keys, attended, lse = kept

    def read(start, length, sums, q, queries, attended, lse, gradient):
        stretch = partial(
            jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=length, axis=1
        )
        shares = jnp.exp(_scores(q, stretch(k), queries, keys, start, causal) - lse)
        by_share = jnp.einsum(
            "KXH,KSH->KXS", gradient, stretch(v), preferred_element_type=jnp.float32
        )
        mean = jnp.sum(
            gradient.astype(jnp.float32) * attended.astype(jnp.float32), axis=-1, keepdims=True
        )
        by_score = (shares * (by_share - mean) * q.shape[-1] ** -0.5).astype(q.dtype)
        by_key = jnp.einsum("KXS,KXH->KSH", by_score, q, preferred_element_type=jnp.float32)
        by_value = jnp.einsum(
            "KXS,KXH->KSH", shares.astype(q.dtype), gradient, preferred_element_type=jnp.float32
        )
        sums = tuple(
            jax.lax.dynamic_update_slice_in_dim(total, stretch(total) + some, start, axis=1)
            for total, some in zip(sums, (by_key, by_value), strict=True)
        )
        return sums, jnp.einsum("KXS,KSH->KXH", by_score, stretch(k))

    def one(sums, block):
        return _on_stretch(read, block[1], keys, causal, sums, *block)

    nothing = (jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32))
    (by_key, by_value), by_query = jax.lax.scan(one, nothing, (q, queries, attended, lse, gradient))
    return by_query, by_key.astype(k.dtype), by_value.astype(v.dtype), None, None


read_row.defvjp(_read_row_forward, _read_row_backward)


def _on_stretch(read: Callable, queries: Places, keys: Places, causal: bool, *inputs):
    """`read(start, length, *inputs)` on a stretch that holds all keys [S] these queries may read."""
    size, s = queries.segments.shape[0], keys.segments.shape[0]
    lengths = [min(s, size << i) for i in range((-(-s // size) - 1).bit_length() + 1)]
    if len(lengths) == 1:  # jaxlib 0.11.2 crashes on the empty reduction below
        return read(jnp.int32(0), s, *inputs)
    seen = jnp.any(_row_mask(queries, keys, causal), axis=0)
    first, last = jnp.argmax(seen), jnp.where(jnp.any(seen), s - jnp.argmax(seen[::-1]), 0)
    needed = jnp.sum(jnp.array(lengths[:-1], jnp.int32) < last - first)
    ways = [
        lambda *x, length=length: read(jnp.minimum(first, s - length), length, *x)
        for length in lengths
    ]
    return jax.lax.switch(needed, ways, *inputs)


def _scores(q: Array, k: Array, queries: Places, keys: Places, start: Array, causal: bool) -> Array:
    """Scores [K X S] in float32, least where a query may not read; `k` is the stretch of keys from `start` on."""
    scores = jnp.einsum("KXH,KSH->KXS", q, k, preferred_element_type=jnp.float32)
    here = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, k.shape[1]), keys)
    mask = _row_mask(queries, here, causal)
    by_head = scores.reshape(len(scores), -1, *mask.shape) * q.shape[-1] ** -0.5
    return jnp.where(mask, by_head, jnp.finfo(jnp.float32).min).reshape(scores.shape)


def _row_mask(queries: Places, keys: Places, causal: bool) -> Array:
    """`attention_mask` of one row's places."""
    queries, keys = jax.tree.map(lambda x: x[None], (queries, keys))
    return attention_mask(queries, keys, causal)[0]
