"""Attention within segments: two functions, computed in the way of the chips in scope.

All back ends agree. They differ in the scores they hold in memory: all of them, those of a block of
queries, or none.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from lclm_jax.batch import Places
from lclm_jax.distributed.sharding import mesh_axes, platform, to_spec
from lclm_jax.model.attention.blocks import Part, merge, merge_shards, read_keys
from lclm_jax.model.attention.cache import CACHE_AXES, Cache
from lclm_jax.model.attention.cpu import attend_cpu
from lclm_jax.model.attention.gpu import (
    attend_gpu,
    attend_token,
    has_token_kernel,
    read_keys_flash,
)
from lclm_jax.model.attention.reference import attend_reference
from lclm_jax.model.attention.shards import Backend, RowAxes, on_shards
from lclm_jax.model.attention.tpu import attend_splash, read_keys_splash
from lclm_jax.model.masks import attention_mask
from lclm_jax.typing import Array, Float, Int, typed

BACKENDS: dict[str, Backend] = {"cpu": attend_cpu, "tpu": attend_splash, "gpu": attend_gpu}


@typed
def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    queries: Places,
    causal: bool,
    axes: RowAxes = ("batch", "length"),
) -> Float[Array, "B T N H"]:
    """Compute softmax attention of sequences to themselves, within segments, scaled by H ** -0.5.

    Scores are float32. Segments must be contiguous and their positions increase. The output of a
    query that may read no key is finite but undefined.
    """
    with jax.named_scope("attend"):
        backend = BACKENDS.get(platform(), attend_reference)
        return backend(q, k, v, queries, causal, axes)


@typed
def attend_after(
    q: Float[Array, "B T N H"],
    own: tuple[Float[Array, "B K T H"], Float[Array, "B K T H"]],
    queries: Places,
    cache: Cache,
    layer: Int[Array, ""] | None,
    causal: bool,
) -> Float[Array, "B T N H"]:
    """Compute `attend` for new tokens that follow cached ones.

    They attend to the cache and to each other; `own` is their keys and values. `layer` is the
    number of the layer where the cache holds all layers. Nothing is written to the cache.
    """
    with jax.named_scope("attend"):
        if q.shape[1] == 1 and not _reads_token_in_parts(q):
            return _attend_jointly(q, own, queries, _one_layer(cache, layer), causal)
        return _attend_in_parts(q, own, queries, cache, layer, causal)


def _reads_token_in_parts(q: Array) -> bool:
    """Return True where the chips in scope read a cache for one token without all scores."""
    return platform() == "cpu" or (platform() == "gpu" and has_token_kernel(q))


def _one_layer(cache: Cache, layer: Array | None) -> Cache:
    """Return the cache of one layer."""
    if layer is None:
        return cache
    take = partial(jax.lax.dynamic_index_in_dim, index=layer, keepdims=False)
    keys, values = cache.arrays
    return replace(cache, keys=take(keys), values=take(values))


def _attend_in_parts(
    q,
    own: tuple[Array, Array],
    queries: Places,
    cache: Cache,
    layer: Array | None,
    causal: bool,
) -> Array:
    """Read the cache and the tokens themselves one after the other, and merge both parts."""

    def attend_rows(q, own: tuple[Array, Array], queries, cache, layer):
        axes, length = mesh_axes("length"), cache.length
        if axes:  # each device reads its own part of the cache
            end = jnp.clip(cache.end - jax.lax.axis_index(axes) * length, 0, length)
            cache = replace(cache, end=end)
        cached = merge_shards(_read_cache(q, queries, cache, layer, causal), axes)
        new = _read_own(q, *own, queries, causal)
        return merge(cached, new).astype(q.dtype)

    query_spec = to_spec(("batch", None, "heads", "head_dim"))
    own_spec = to_spec(("batch", "kv_heads", None, "head_dim"))
    cache_spec = to_spec(CACHE_AXES[1:] if layer is None else CACHE_AXES)
    query_place, cache_place = to_spec(("batch", None)), to_spec(("batch", "length"))
    cache_specs = Cache(
        cache_spec,  # pyright: ignore[reportArgumentType]  # specs take the place of arrays
        cache_spec,  # pyright: ignore[reportArgumentType]
        cache_place,  # pyright: ignore[reportArgumentType]
        jax.P(),  # pyright: ignore[reportArgumentType]
    )
    specs = (query_spec, (own_spec, own_spec), query_place, cache_specs, jax.P())
    return on_shards(attend_rows, specs, query_spec)(q, own, queries, cache, layer)


def _read_cache(q, queries: Places, cache: Cache, layer: Array | None, causal: bool) -> Part:
    """Read a cache, in the way of the chips in scope."""
    if platform() == "gpu" and q.shape[1] == 1:
        return attend_token(q, queries, cache, layer)
    cache = _one_layer(cache, layer)
    inputs = (q, *cache.arrays, queries, cache.places, causal, cache.end)
    if platform() == "gpu":
        return read_keys_flash(*inputs, own=False)
    if platform() == "tpu":
        return read_keys_splash(*inputs, own=False)
    return read_keys(*inputs)


def _read_own(q, k, v, queries: Places, causal: bool) -> Part:
    """Read the tokens themselves, in the way of the chips in scope."""
    if q.shape[1] == 1:
        return _read_single(q, k, v)
    inputs = (q, k, v, queries, queries, causal, jnp.int32(q.shape[1]))
    if platform() == "gpu":
        return read_keys_flash(*inputs, own=True)
    if platform() == "tpu":
        return read_keys_splash(*inputs, own=True)
    return read_keys(*inputs)


def _read_single(q, k, v) -> Part:
    """Read one token [B 1 N H] for itself."""
    group = q.shape[2] // k.shape[1]

    def repeat_heads(x: Array) -> Array:
        return jnp.repeat(x.swapaxes(1, 2), group, axis=2).astype(jnp.float32)

    key, value = repeat_heads(k), repeat_heads(v)
    scores = jnp.sum(q.astype(jnp.float32) * key, axis=-1)
    return value, scores * q.shape[-1] ** -0.5


def _attend_jointly(q, own, queries: Places, cache: Cache, causal: bool) -> Array:
    """Make one softmax over the cache and the tokens themselves, with all scores in memory."""
    b, t, n, h = q.shape
    scaled = (q * h**-0.5).astype(q.dtype)
    grouped = scaled.reshape(b, t, own[0].shape[1], -1, h)
    einsum = partial(jnp.einsum, preferred_element_type=jnp.float32)

    def scores(keys: Array, mask: Array) -> Array:
        products = einsum("BTKGH,BKSH->BKGTS", grouped, keys)
        return jnp.where(mask[:, None, None], products, jnp.finfo(jnp.float32).min)

    def gather(shares: Array, values: Array) -> Array:
        return einsum("BKGTS,BKSH->BKGTH", shares.astype(values.dtype), values)

    keys, values = cache.arrays
    in_use = jnp.arange(cache.length) < cache.end
    cached_scores = scores(keys, attention_mask(queries, cache.places, causal) & in_use)
    own_scores = scores(own[0], attention_mask(queries, queries, causal))
    all_scores = jnp.concatenate([cached_scores, own_scores], axis=-1)
    shares = jax.nn.softmax(all_scores, axis=-1)
    cached_shares = shares[..., : cache.length]
    own_shares = shares[..., cache.length :]
    attended = gather(cached_shares, values) + gather(own_shares, own[1])
    attended = attended.transpose(0, 3, 1, 2, 4)
    return attended.reshape(b, t, n, h).astype(q.dtype)
