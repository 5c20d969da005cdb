"""Attention on GPUs: tokamax's flash kernels for Hopper and Blackwell cards, blocks of scores elsewhere.

The kernels take the first and the last key that each query may read. The tokens of a segment must
therefore lie side by side, as they do in packed rows, windows and prompts.
"""

import importlib.util
from functools import cache, partial
from importlib import import_module

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lclm_jax.batch import Places
from lclm_jax.distributed.sharding import device_kind, splits
from lclm_jax.model.attention.blocks import Part, read_keys
from lclm_jax.model.attention.cache import Cache
from lclm_jax.model.attention.reference import dense
from lclm_jax.model.attention.shards import SAVED, RowAxes, on_shards, sequence_specs
from lclm_jax.typing import Array

FLASH_CARDS = ("NVIDIA H100", "NVIDIA H200", "NVIDIA GH200", "NVIDIA B200", "NVIDIA GB200")
OLD_CARDS = ("Tesla", "Quadro", "NVIDIA TITAN")  # before Ampere: Pallas' Triton needs that
QUERIES_AT_ONCE = 256  # of `blocked`
PREFIXES = 8  # prefixes of keys, at most, that spare `blocked` most of what lies ahead of a query
BLOCKS = 4  # blocks of queries that share a prefix, at least
KEYS = 128  # keys that the decoding kernel reads at once
PROGRAMS = 528  # programs of the decoding kernel to aim for: four for each multiprocessor


def attend_gpu(q, k, v, places: Places, causal: bool, axes: RowAxes) -> Array:
    """Attention of a sequence [B T N H] to itself: by a kernel where there is one."""
    way = flash if has_flash(q) else blocked
    return way(q, k, v, places, causal, axes)


def has_flash(q: Array) -> bool:
    """True if tokamax is installed and has a kernel for these queries on the cards in scope."""
    known = device_kind().startswith(FLASH_CARDS) and importlib.util.find_spec("tokamax")
    return bool(known) and q.dtype == jnp.bfloat16 and q.shape[-1] in (64, 128)


def has_token_kernel(q: Array) -> bool:
    """True if `attend_token` takes these queries: 16-bit numbers, on Ampere cards and newer."""
    if device_kind().startswith(OLD_CARDS):
        return False
    return q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] in (64, 128, 256)


@cache
def kernels():
    """The forward and the backward operation of tokamax."""
    library = "tokamax._src.ops.attention.pallas_mosaic_gpu"
    forward, backward = import_module(library), import_module(f"{library}_vjp")
    flash = forward.PallasMosaicGpuFlashAttention()
    return flash, backward.PallasMosaicGpuFlashAttentionVjp()


def flash(q, k, v, places: Places, causal: bool, axes: RowAxes) -> Array:
    """A sequence [B T N H] to itself, no scores in memory. Pads read themselves only."""
    starts, ends = segment_bounds(places.segments, causal)
    top_left = causal and splits(axes[1]) == 1  # the kernel's own causal mask skips more blocks

    def local(q, k, v, starts, ends):
        bounds = (starts, None if top_left else ends)
        return _flash(top_left, q, k.swapaxes(1, 2), v.swapaxes(1, 2), bounds)

    (query, key, _, at_query, _), out = sequence_specs(axes)
    where = at_query.segments
    return on_shards(local, (query, key, key, where, where), out)(q, k, v, starts, ends)


def segment_bounds(segments: Array, causal: bool) -> tuple[Array, Array]:
    """The first key each query may read, and one more than the last, as columns [B T].

    Segments 1 1 1 2 2 0, causal: 0 0 0 3 3 5 and 1 2 3 4 5 6; else 0 0 0 3 3 5 and 3 3 3 5 5 6.
    """
    columns = jnp.broadcast_to(jnp.arange(segments.shape[1], dtype=jnp.int32), segments.shape)
    changes = segments[:, 1:] != segments[:, :-1]
    first = jnp.pad(changes, ((0, 0), (1, 0)), constant_values=True)
    last = jnp.pad(changes, ((0, 0), (0, 1)), constant_values=True)
    starts = jax.lax.cummax(jnp.where(first, columns, 0), axis=1)
    starts = jnp.where(segments > 0, starts, columns)
    if causal:
        return starts, columns + 1
    far = segments.shape[1]
    ends = jax.lax.cummin(jnp.where(last, columns + 1, far), axis=1, reverse=True)
    return starts, jnp.where(segments > 0, ends, columns + 1)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _flash(causal: bool, q, k, v, bounds):
    return _flash_forward(causal, q, k, v, bounds)[0]


def _flash_forward(causal, q, k, v, bounds):
    out, residuals = kernels()[0](q, k, v, mask=_mask(causal, bounds), return_residuals=True)
    out, residuals = checkpoint_name((out, residuals), SAVED)
    return out, (q, k, v, bounds, out, residuals)


def _flash_backward(causal, kept, gradient):
    q, k, v, bounds, out, residuals = kept
    forward, backward = kernels()
    call = forward.bind(q, k, v, mask=_mask(causal, bounds))
    by = backward(residuals, out, gradient.astype(q.dtype), *call.args, **call.kwargs)
    return by["q"], by["k"], by["v"], (None, None)


_flash.defvjp(_flash_forward, _flash_backward)


def _mask(causal: bool, bounds):
    Mask = import_module("tokamax._src.ops.attention.base").Mask
    starts, ends = (None if one is None else one[..., None, :] for one in bounds)
    return Mask(k_start=starts, k_end=ends, is_causal=causal)


def flash_keys(q, k, v, queries: Places, keys: Places, causal: bool, end: Array, own: bool) -> Part:
    """The part of attention that queries [B T N H] read of keys and values [B K S H] up to `end`.

    With `own`, keys and values are of the same tokens as the queries; otherwise they are cached,
    all earlier, and each row's used ones are contiguous from the start. On one device: call it
    inside a `shard_map`.
    """
    if not has_flash(q):
        return read_keys(q, k, v, queries, keys, causal, end)
    if own:
        starts, ends = segment_bounds(queries.segments, causal)
        bounds = (starts, None if causal else ends)
    else:
        used = (keys.segments > 0) & (jnp.arange(k.shape[2]) < end)
        count = jnp.sum(used, axis=1, dtype=jnp.int32)
        bounds = (None, jnp.broadcast_to(count[:, None], q.shape[:2]))
    # Heads that share keys are a batch: keys and values are read as they lie in the cache.
    bounds = jax.tree.map(lambda x: x[:, None], bounds)
    (b, t, n, h), groups = q.shape, k.shape[1]
    grouped = q.reshape(b, t, groups, n // groups, h).swapaxes(1, 2)
    inputs = (grouped, k[:, :, :, None], v[:, :, :, None])
    out, (top, weight) = kernels()[0](
        *inputs, mask=_mask(causal and own, bounds), return_residuals=True
    )
    lse = jnp.where(weight > 0, top + jnp.log(weight), -jnp.inf)  # [B K G T]
    out = out.swapaxes(1, 2).reshape(b, t, n, h)
    return out.astype(jnp.float32), lse.reshape(b, n, t).swapaxes(1, 2)


def attend_token(
    q, queries: Places, cache: Cache, layer: Array | None, interpret: bool = False
) -> Part:
    """The part of attention that one token of each row [B 1 N H] reads of a cache.

    A Triton kernel, as in flash decoding: the cache is cut into parts that are read at the same
    time and then merged. It reads what is in use of one layer, where it lies, and nothing else.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    keys, values = cache.keys, cache.values
    if layer is None:
        keys, values, layer = keys[None], values[None], jnp.int32(0)
    (b, _, n, h), (layers, _, groups, s, _) = q.shape, keys.shape
    heads = max(16, n // groups)  # a matrix product has at least 16 rows
    parts = max(1, min(PROGRAMS // (b * groups), s // KEYS))
    each = -(-cache.end // (KEYS * parts))  # blocks of keys that a part reads
    grouped = (q * h**-0.5).astype(q.dtype).reshape(b, groups, n // groups, h)
    grouped = jnp.pad(grouped, ((0, 0), (0, 0), (0, heads - n // groups), (0, 0)))
    bounds = [jnp.asarray(x, jnp.int32) for x in (layer, cache.end, each)]

    def kernel(
        layer_ref, end_ref, each_ref, q_ref, k_ref, v_ref, own_ref, at_ref, out_ref, lse_ref
    ):
        layer, end, each = layer_ref[0], end_ref[0], each_ref[0]
        query, segment, part = q_ref[...], own_ref[0], pl.program_id(2)

        def add_keys(block, sums):
            total, top, weight = sums
            here = pl.ds(block * KEYS, KEYS)
            scores = jnp.dot(query, k_ref[layer, here, :].T, preferred_element_type=jnp.float32)
            columns = block * KEYS + jnp.arange(KEYS)
            seen = (columns < end) & (at_ref[here] == segment)
            scores = jnp.where(seen[None], scores, -1e30)
            higher = jnp.maximum(top, jnp.max(scores, axis=1))
            shrink, shares = jnp.exp(top - higher), jnp.exp(scores - higher[:, None])
            value = v_ref[layer, here, :]
            read = jnp.dot(shares.astype(value.dtype), value, preferred_element_type=jnp.float32)
            total = total * shrink[:, None] + read
            return total, higher, weight * shrink + jnp.sum(shares, axis=1)

        nothing = (
            jnp.zeros((heads, h), jnp.float32),
            jnp.full((heads,), -1e29, jnp.float32),
            jnp.zeros((heads,), jnp.float32),
        )
        last = jnp.minimum((part + 1) * each, (end + KEYS - 1) // KEYS)
        total, top, weight = jax.lax.fori_loop(part * each, last, add_keys, nothing)
        weight = jnp.maximum(weight, 1e-30)
        out_ref[...] = total / weight[:, None]
        lse_ref[...] = top + jnp.log(weight)

    number = pl.BlockSpec((1,), lambda i, j, p: (0,))
    cached = pl.BlockSpec((layers, None, None, s, h), lambda i, j, p: (0, i, j, 0, 0))
    call = pl.pallas_call(
        kernel,
        grid=(b, groups, parts),
        in_specs=[
            *[number] * 3,
            pl.BlockSpec((None, None, heads, h), lambda i, j, p: (i, j, 0, 0)),
            cached,
            cached,
            pl.BlockSpec((None, 1), lambda i, j, p: (i, 0)),
            pl.BlockSpec((None, s), lambda i, j, p: (i, 0)),
        ],
        out_specs=[
            pl.BlockSpec((None, None, None, heads, h), lambda i, j, p: (i, j, p, 0, 0)),
            pl.BlockSpec((None, None, None, heads), lambda i, j, p: (i, j, p, 0)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((b, groups, parts, heads, h), jnp.float32),
            jax.ShapeDtypeStruct((b, groups, parts, heads), jnp.float32),
        ],
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
        name="attend_token",
    )
    bounds = [x[None] for x in bounds]
    places = (queries.segments, cache.places.segments)
    attended, lse = call(*bounds, grouped, keys, values, *places)
    top = jnp.max(lse, axis=2, keepdims=True)
    weights = jnp.exp(lse - top)
    total = jnp.sum(weights, axis=2)
    attended = jnp.sum(attended * weights[..., None], axis=2) / total[..., None]
    lse = top[:, :, 0] + jnp.log(total)
    count = n // groups
    attended = attended[:, :, :count].reshape(b, 1, n, h)
    return attended, lse[:, :, :count].reshape(b, 1, n)


def blocked(q, k, v, places: Places, causal: bool, axes: RowAxes) -> Array:
    """A sequence [B T N H] to itself, the scores of a few queries at a time, made again in the
    backward pass.

    A sequence that is on one device and causal is read in parts, each against the keys up to its
    end.
    """

    def local(q, k, v, queries, keys):
        t = q.shape[1]
        if not causal or t != k.shape[2]:
            return _in_blocks(q, k, v, queries, keys, causal)
        length = max(BLOCKS, -(-t // (PREFIXES * QUERIES_AT_ONCE))) * QUERIES_AT_ONCE
        parts = []
        for start in range(0, t, length):
            own, seen = slice(start, start + length), slice(start + length)
            at_query = Places(queries.segments[:, own], queries.positions[:, own])
            at_key = Places(keys.segments[:, seen], keys.positions[:, seen])
            k_seen, v_seen = k[:, :, seen], v[:, :, seen]
            parts.append(_in_blocks(q[:, own], k_seen, v_seen, at_query, at_key, causal))
        return jnp.concatenate(parts, axis=1)

    specs, out = sequence_specs(axes)
    return on_shards(local, specs, out)(q, k, v, places, places)


def _in_blocks(q, k, v, queries: Places, keys: Places, causal: bool) -> Array:
    """`dense` for QUERIES_AT_ONCE at a time."""
    t = q.shape[1]
    size = min(t, QUERIES_AT_ONCE)
    # In float32, so that the gradients of the blocks add up in it.
    k32, v32 = k.astype(jnp.float32), v.astype(jnp.float32)

    def blocks(x):
        x = jnp.pad(x, ((0, 0), (0, -t % size)) + ((0, 0),) * (x.ndim - 2))
        return x.reshape(len(x), -1, size, *x.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint
    def one(block):
        return dense(block[0], k32.astype(k.dtype), v32.astype(v.dtype), block[1], keys, causal)

    attended = jax.lax.map(one, jax.tree.map(blocks, (q, queries)))
    attended = checkpoint_name(attended, SAVED)
    return attended.swapaxes(0, 1).reshape(len(q), -1, *q.shape[2:])[:, :t]
