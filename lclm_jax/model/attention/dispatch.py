"""Attention within segments: two functions, computed by a back end that the chips in scope choose.

All back ends agree. They differ in the scores they hold in memory: all of them, those of a block of
queries, or none.
"""

from functools import partial

import jax
import jax.numpy as jnp

from lclm_jax.batch import Places
from lclm_jax.distributed.sharding import mesh_axes, platform, to_spec
from lclm_jax.model.attention.blocks import Part, merge, merge_shards, read_keys
from lclm_jax.model.attention.cache import CACHE_AXES, Cache
from lclm_jax.model.attention.cpu import stretched
from lclm_jax.model.attention.gpu import attend_gpu, attend_token, flash_keys, has_token_kernel
from lclm_jax.model.attention.reference import reference
from lclm_jax.model.attention.shards import Backend, RowAxes, on_shards
from lclm_jax.model.attention.tpu import splash, splash_keys
from lclm_jax.model.masks import attention_mask
from lclm_jax.typing import Array, Float, Int, typed

BACKENDS: dict[str, Backend] = {"cpu": stretched, "tpu": splash, "gpu": attend_gpu}


@typed
def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    queries: Places,
    causal: bool,
    axes: RowAxes = ("batch", "length"),
) -> Float[Array, "B T N H"]:
    """Softmax attention of sequences to themselves, within segments, scaled by H ** -0.5.

    Scores are float32. Requires contiguous segments with increasing positions. The output of a
    fully masked query is finite but undefined.
    """
    with jax.named_scope("attend"):
        return BACKENDS.get(platform(), reference)(q, k, v, queries, causal, axes)


@typed
def attend_after(
    q: Float[Array, "B T N H"],
    own: tuple[Float[Array, "B K T H"], Float[Array, "B K T H"]],
    queries: Places,
    cache: Cache,
    layer: Int[Array, ""] | None,
    causal: bool,
) -> Float[Array, "B T N H"]:
    """`attend` for new tokens that follow cached ones: they attend to the cache and to each other.

    `layer` is the number of the layer where the cache is stacked. Nothing is written; the caller
    does that.
    """
    with jax.named_scope("attend"):
        if q.shape[1] == 1 and not _reads_tokens(q):
            return _joint(q, own, queries, _one_layer(cache, layer), causal)
        return _in_parts(q, own, queries, cache, layer, causal)


def _reads_tokens(q: Array) -> bool:
    """True where the chips in scope read a cache for one token without holding all scores."""
    return platform() == "cpu" or (platform() == "gpu" and has_token_kernel(q))


def _one_layer(cache: Cache, layer: Array | None) -> Cache:
    """The cache of one layer."""
    if layer is None:
        return cache
    take = partial(jax.lax.dynamic_index_in_dim, index=layer, keepdims=False)
    return cache.replace(keys=take(cache.keys), values=take(cache.values))


def _in_parts(q, own, queries: Places, cache: Cache, layer: Array | None, causal: bool) -> Array:
    """Reads the cache and the tokens themselves one after the other, and merges both parts."""

    def local(q, own, queries, cache, layer):
        axes, length = mesh_axes("length"), cache.length
        if axes:  # each device reads its own part of the cache
            end = jnp.clip(cache.end - jax.lax.axis_index(axes) * length, 0, length)
            cache = cache.replace(end=end)
        past = _read_cache(q, queries, cache, layer, causal)
        here = _read_own(q, *own, queries, causal)
        return merge(merge_shards(past, axes), here).astype(q.dtype)

    query = to_spec(("batch", None, "heads", "head_dim"))
    key = to_spec(("batch", "kv_heads", None, "head_dim"))
    at_query, at_old = to_spec(("batch", None)), to_spec(("batch", "length"))
    here, there = Places(at_query, at_query), Places(at_old, at_old)
    old = to_spec(CACHE_AXES[1:] if layer is None else CACHE_AXES)
    specs = (query, (key, key), here, Cache(old, old, there, jax.P()), jax.P())
    return on_shards(local, specs, query)(q, own, queries, cache, layer)


def _read_cache(q, queries: Places, cache: Cache, layer: Array | None, causal: bool) -> Part:
    """The part of attention over a cache, by the back end of the chips in scope."""
    if platform() == "gpu" and q.shape[1] == 1:
        return attend_token(q, queries, cache, layer)
    cache = _one_layer(cache, layer)
    inputs = (q, cache.keys, cache.values, queries, cache.places, causal, cache.end)
    if platform() == "gpu":
        return flash_keys(*inputs, own=False)
    if platform() == "tpu":
        return splash_keys(*inputs, own=False)
    return read_keys(*inputs)


def _read_own(q, k, v, queries: Places, causal: bool) -> Part:
    """The part of attention over the tokens themselves."""
    if q.shape[1] == 1:
        return _read_self(q, k, v)
    inputs = (q, k, v, queries, queries, causal, jnp.int32(q.shape[1]))
    if platform() == "gpu":
        return flash_keys(*inputs, own=True)
    if platform() == "tpu":
        return splash_keys(*inputs, own=True)
    return read_keys(*inputs)


def _read_self(q, k, v) -> Part:
    """The part of attention that one token [B 1 N H] reads of itself."""
    repeat = partial(jnp.repeat, repeats=q.shape[2] // k.shape[1], axis=2)
    key, value = (repeat(x.swapaxes(1, 2)).astype(jnp.float32) for x in (k, v))
    return value, jnp.sum(q.astype(jnp.float32) * key, axis=-1) * q.shape[-1] ** -0.5


def _joint(q, own, queries: Places, cache: Cache, causal: bool) -> Array:
    """One softmax over the cache and the tokens themselves, with all scores in memory."""
    b, t, n, h = q.shape
    grouped = (q * h**-0.5).astype(q.dtype).reshape(b, t, own[0].shape[1], -1, h)
    einsum = partial(jnp.einsum, preferred_element_type=jnp.float32)

    def scores(keys: Array, mask: Array) -> Array:
        dots = einsum("BTKGH,BKSH->BKGTS", grouped, keys)
        return jnp.where(mask[:, None, None], dots, jnp.finfo(jnp.float32).min)

    def gather(shares: Array, values: Array) -> Array:
        return einsum("BKGTS,BKSH->BKGTH", shares.astype(values.dtype), values)

    old = attention_mask(queries, cache.places, causal) & (jnp.arange(cache.length) < cache.end)
    both = [scores(cache.keys, old), scores(own[0], attention_mask(queries, queries, causal))]
    shares = jax.nn.softmax(jnp.concatenate(both, axis=-1), axis=-1)
    past, here = shares[..., : cache.length], shares[..., cache.length :]
    attended = gather(past, cache.values) + gather(here, own[1])
    return attended.transpose(0, 3, 1, 2, 4).reshape(b, t, n, h).astype(q.dtype)
