"""Attention after a cache: every back end equals one softmax over all keys."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lclm_jax.batch import Places
from lclm_jax.model.attention import Cache, attend_after
from lclm_jax.model.attention.blocks import merge, read_keys
from lclm_jax.model.attention.dispatch import _read_single
from lclm_jax.model.attention.gpu import attend_token, segment_bounds
from lclm_jax.model.attention.reference import attend_dense
from lclm_jax.model.attention.tpu import read_keys_splash

pytestmark = pytest.mark.image

ROWS, HEADS, KV_HEADS, WIDTH = 2, 4, 2, 128


def random_case(tokens: int, length: int, ends: tuple[int, ...], dtype=jnp.float32):
    """Make queries, their own keys and values, and a cache in which row i has `ends[i]` tokens."""
    rng = np.random.default_rng(tokens)

    def random(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    q, keys = random(ROWS, tokens, HEADS, WIDTH), random(ROWS, KV_HEADS, length, WIDTH)
    own = random(ROWS, KV_HEADS, tokens, WIDTH), random(ROWS, KV_HEADS, tokens, WIDTH)
    columns, counts = np.arange(length)[None], np.array(ends)[:, None]
    # Positions beyond the end were written by an earlier, longer use.
    used = (columns < counts) | (columns >= max(ends))
    places = Places(used.astype(np.int32), np.broadcast_to(columns, used.shape).astype(np.int32))
    positions = counts + np.arange(tokens)[None]
    queries = Places(np.ones_like(positions, np.int32), positions.astype(np.int32))
    cache = Cache(keys, random(*keys.shape), places, jnp.int32(max(ends)))
    return q, own, queries, cache


def expected(q, own, queries: Places, cache: Cache):
    """Make one softmax over the positions of the cache in use and the tokens themselves."""
    end = int(cache.end)
    places = jax.tree.map(lambda x, y: np.concatenate([x[:, :end], y], 1), cache.places, queries)
    cached = (cache.keys[:, :, :end], cache.values[:, :, :end])
    keys, values = (jnp.concatenate(pair, axis=2) for pair in zip(cached, own, strict=True))
    return attend_dense(q, keys, values, queries, places, True)


def through_splash(q, own, queries, cache, causal):
    keys = partial(read_keys_splash, interpret=True)
    cached = keys(q, cache.keys, cache.values, queries, cache.places, causal, cache.end, own=False)
    new = keys(q, *own, queries, queries, causal, jnp.int32(q.shape[1]), own=True)
    return merge(cached, new)


def through_blocks(q, own, queries, cache, causal):
    cached = read_keys(q, cache.keys, cache.values, queries, cache.places, causal, cache.end)
    return merge(cached, read_keys(q, *own, queries, queries, causal, jnp.int32(q.shape[1])))


BACKENDS = {
    "dispatch": lambda *case: attend_after(*case[:-1], None, case[-1]),
    "blocks": through_blocks,
    "splash": through_splash,
}


@pytest.mark.parametrize("ends", [(0, 0), (7, 7), (300, 41), (640, 640)])
@pytest.mark.parametrize("tokens", [1, 200, 256])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_chunk_reads_the_cache_and_itself(backend, tokens, ends):
    case = random_case(tokens, 1024, ends)
    np.testing.assert_allclose(BACKENDS[backend](*case, True), expected(*case), atol=2e-5)


@pytest.mark.parametrize("layers", [None, 3])
@pytest.mark.parametrize("ends", [(1, 1), (7, 7), (300, 41), (1024, 1000)])
def test_the_token_kernel_reads_one_layer_of_a_cache(ends, layers):
    q, own, queries, cache = random_case(1, 1024, ends)
    layer, stacked = None, cache
    if layers:
        layer = jnp.int32(1)
        unread = jnp.full_like(cache.keys, jnp.nan)
        keys = jnp.stack([unread, cache.keys, unread])
        values = jnp.stack([unread, cache.values, unread])
        stacked = cache.replace(keys=keys, values=values)
    part = attend_token(q, queries, stacked, layer, interpret=True)
    actual = merge(part, _read_single(q, *own))
    np.testing.assert_allclose(actual, expected(q, own, queries, cache), atol=2e-5)


def test_bounds_of_segments():
    segments = jnp.array([[1, 1, 1, 2, 2, 0], [4, 0, 0, 5, 5, 5]])
    starts, ends = segment_bounds(segments, causal=True)
    np.testing.assert_array_equal(starts, [[0, 0, 0, 3, 3, 5], [0, 1, 2, 3, 3, 3]])
    np.testing.assert_array_equal(ends, [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]])
    starts, ends = segment_bounds(segments, causal=False)
    np.testing.assert_array_equal(starts, [[0, 0, 0, 3, 3, 5], [0, 1, 2, 3, 3, 3]])
    np.testing.assert_array_equal(ends, [[3, 3, 3, 5, 5, 6], [1, 2, 3, 6, 6, 6]])
