"""Attention on GPUs: flash kernels of tokamax, and blocks of scores where it has none.

tokamax has kernels for Hopper and Blackwell cards. They take the first and the last key that each
query may read. The tokens of a segment must therefore lie side by side, as they do in packed rows,
windows and prompts.
"""

import importlib.util
from functools import cache, partial
from importlib import import_module

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lclm_jax.batch import Places
from lclm_jax.distributed.sharding import device_kind, splits
from lclm_jax.model.attention.blocks import Part, cut_into_blocks, read_keys
from lclm_jax.model.attention.cache import Cache
from lclm_jax.model.attention.reference import attend_dense
from lclm_jax.model.attention.shards import SAVED, RowAxes, on_shards, sequence_specs
from lclm_jax.typing import Array

FLASH_CARDS = ("NVIDIA H100", "NVIDIA H200", "NVIDIA GH200", "NVIDIA B200", "NVIDIA GB200")
OLD_CARDS = ("Tesla", "Quadro", "NVIDIA TITAN")  # Pallas' Triton needs Ampere or newer
BLOCK_QUERIES = 256  # queries whose scores `attend_blocked` makes at once
MAX_PREFIXES = 8  # parts of a causal sequence that `attend_blocked` reads, each to its own end
MIN_PREFIX_BLOCKS = 4  # blocks of queries in such a part
TOKEN_KEYS = 128  # keys that a program of `attend_token` reads at once
TOKEN_PROGRAMS = 512  # programs that `attend_token` aims for: about four for each multiprocessor
UNREADABLE = -1e30  # score of a key that the token may not read
LEAST = -1e29  # top score before any key is read; above UNREADABLE: such keys weigh nothing


def attend_gpu(q, k, v, places: Places, causal: bool, axes: RowAxes) -> Array:
    """Compute attention of sequences [B T N H] to themselves, by a kernel where one exists."""
    attend = attend_flash if has_flash(q) else attend_blocked
    return attend(q, k, v, places, causal, axes)


def has_flash(q: Array) -> bool:
    """Return True if tokamax is installed and has a kernel for `q` on the cards in scope."""
    if not device_kind().startswith(FLASH_CARDS) or not importlib.util.find_spec("tokamax"):
        return False
    return q.dtype == jnp.bfloat16 and q.shape[-1] in (64, 128)


def has_token_kernel(q: Array) -> bool:
    """Return True if `attend_token` takes `q`: numbers of 16 bits, on Ampere cards and newer."""
    if device_kind().startswith(OLD_CARDS):
        return False
    return q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] in (64, 128, 256)


@cache
def kernels():
    """Return the forward and the backward operation of tokamax."""
    library = "tokamax._src.ops.attention.pallas_mosaic_gpu"
    forward, backward = import_module(library), import_module(f"{library}_vjp")
    flash = forward.PallasMosaicGpuFlashAttention()
    return flash, backward.PallasMosaicGpuFlashAttentionVjp()


def attend_flash(q, k, v, places: Places, causal: bool, axes: RowAxes) -> Array:
    """Compute the attention of sequences [B T N H] to themselves, without scores in memory.

    Pads read themselves only.
    """
    starts, ends = segment_bounds(places.segments, causal)
    kernel_causal = causal and splits(axes[1]) == 1  # the kernel's own mask skips more blocks

    def attend_rows(q, k, v, starts, ends):
        bounds = (starts, None if kernel_causal else ends)
        return _flash(kernel_causal, q, k.swapaxes(1, 2), v.swapaxes(1, 2), bounds)

    (query, key, _, query_place, _), out = sequence_specs(axes)
    specs = (query, key, key, query_place, query_place)
    return on_shards(attend_rows, specs, out)(q, k, v, starts, ends)


def segment_bounds(segments: Array, causal: bool) -> tuple[Array, Array]:
    """Return the first key each query may read, and one more than the last, as columns [B T].

    Segments 1 1 1 2 2 0 give 0 0 0 3 3 5 and, if causal, 1 2 3 4 5 6, else 3 3 3 5 5 6.
    """
    columns = jnp.broadcast_to(jnp.arange(segments.shape[1], dtype=jnp.int32), segments.shape)
    changes = segments[:, 1:] != segments[:, :-1]
    is_first = jnp.pad(changes, ((0, 0), (1, 0)), constant_values=True)
    is_last = jnp.pad(changes, ((0, 0), (0, 1)), constant_values=True)
    starts = jax.lax.cummax(jnp.where(is_first, columns, 0), axis=1)
    starts = jnp.where(segments > 0, starts, columns)
    if causal:
        return starts, columns + 1
    length = segments.shape[1]
    ends = jax.lax.cummin(jnp.where(is_last, columns + 1, length), axis=1, reverse=True)
    return starts, jnp.where(segments > 0, ends, columns + 1)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _flash(causal: bool, q, k, v, bounds):
    return _flash_forward(causal, q, k, v, bounds)[0]


def _flash_forward(causal: bool, q, k, v, bounds):
    out, residuals = kernels()[0](q, k, v, mask=_mask(causal, bounds), return_residuals=True)
    out, residuals = checkpoint_name((out, residuals), SAVED)
    return out, (q, k, v, bounds, out, residuals)


def _flash_backward(causal: bool, residuals, gradient: Array):
    q, k, v, bounds, out, kernel_residuals = residuals
    forward, backward = kernels()
    call = forward.bind(q, k, v, mask=_mask(causal, bounds))
    gradient = gradient.astype(q.dtype)
    gradients = backward(kernel_residuals, out, gradient, *call.args, **call.kwargs)
    return gradients["q"], gradients["k"], gradients["v"], (None, None)


_flash.defvjp(_flash_forward, _flash_backward)


def _mask(causal: bool, bounds):
    Mask = import_module("tokamax._src.ops.attention.base").Mask
    starts, ends = (None if bound is None else bound[..., None, :] for bound in bounds)
    return Mask(k_start=starts, k_end=ends, is_causal=causal)


def read_keys_flash(
    q, k, v, queries: Places, keys: Places, causal: bool, end: Array, own: bool
) -> Part:
    """Read keys and values [B K S H] up to `end` for queries [B T N H].

    With `own`, keys and values are those of the same tokens as the queries. Otherwise they are
    cached and all earlier, and those in use are contiguous from the start of each row. On one
    device: call it inside a `shard_map`.
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
    (b, t, n, h), kv_heads = q.shape, k.shape[1]
    grouped = q.reshape(b, t, kv_heads, n // kv_heads, h).swapaxes(1, 2)
    inputs = (grouped, k[:, :, :, None], v[:, :, :, None])
    mask, forward = _mask(causal and own, bounds), kernels()[0]
    out, (top, weight) = forward(*inputs, mask=mask, return_residuals=True)
    lse = jnp.where(weight > 0, top + jnp.log(weight), -jnp.inf)  # [B K G T]
    out = out.swapaxes(1, 2).reshape(b, t, n, h)
    return out.astype(jnp.float32), lse.reshape(b, n, t).swapaxes(1, 2)


def attend_token(
    q, queries: Places, cache: Cache, layer: Array | None, interpret: bool = False
) -> Part:
    """Read a cache for one token of each row [B 1 N H].

    Two Triton kernels, as in flash decoding: the cache is cut into parts, which are read at the
    same time and then merged. They read the positions of one layer that are in use, where they
    lie, and nothing else.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    keys, values = cache.arrays
    if layer is None:
        keys, values, layer = keys[None], values[None], jnp.int32(0)
    (b, _, n, h), (layers, _, kv_heads, s, _) = q.shape, keys.shape
    group = n // kv_heads
    heads = max(16, group)  # a matrix product has at least 16 rows
    parts = max(1, min(TOKEN_PROGRAMS // (b * kv_heads), s // TOKEN_KEYS))
    parts = pl.next_power_of_2(parts)  # Triton's arrays have such sizes
    part_blocks = -(-cache.end // (TOKEN_KEYS * parts))
    grouped = (q * h**-0.5).astype(q.dtype).reshape(b, kv_heads, group, h)
    grouped = jnp.pad(grouped, ((0, 0), (0, 0), (0, heads - group), (0, 0)))

    # Programs are numbered (row i, key head j, part p).
    number = pl.BlockSpec((1,), lambda i, j, p: (0,))
    cached = pl.BlockSpec((layers, None, None, s, h), lambda i, j, p: (0, i, j, 0, 0))
    call = pl.pallas_call(
        _read_part,
        grid=(b, kv_heads, parts),
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
            jax.ShapeDtypeStruct((b, kv_heads, parts, heads, h), jnp.float32),
            jax.ShapeDtypeStruct((b, kv_heads, parts, heads), jnp.float32),
        ],
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
        name="attend_token",
    )
    numbers = [jnp.asarray(x, jnp.int32)[None] for x in (layer, cache.end, part_blocks)]
    segments = (queries.segments, cache.places.segments)
    attended, lse = call(*numbers, grouped, keys, values, *segments)
    merged = pl.pallas_call(
        _merge_parts,
        grid=(b, kv_heads, group),
        in_specs=[
            pl.BlockSpec((None, None, parts, None, h), lambda i, j, g: (i, j, 0, g, 0)),
            pl.BlockSpec((None, None, parts, None), lambda i, j, g: (i, j, 0, g)),
        ],
        out_specs=[
            pl.BlockSpec((None, None, None, h), lambda i, j, g: (i, j, g, 0)),
            pl.BlockSpec((None, None, None), lambda i, j, g: (i, j, g)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((b, kv_heads, group, h), jnp.float32),
            jax.ShapeDtypeStruct((b, kv_heads, group), jnp.float32),
        ],
        compiler_params=triton.CompilerParams(num_warps=4),
        interpret=interpret,
        name="merge_parts",
    )
    attended, lse = merged(attended, lse)
    return attended.reshape(b, 1, n, h), lse.reshape(b, 1, n)


def _read_part(
    layer_ref, end_ref, blocks_ref, q_ref, k_ref, v_ref, token_ref, keys_ref, out_ref, lse_ref
):
    """Read one part of a row's cache for the heads that share a key head.

    The kernel of `attend_token`. A part has `blocks_ref` blocks of keys; `token_ref` and `keys_ref`
    are the segments of the token and of the cache.
    """
    from jax.experimental import pallas as pl

    layer, end, part_blocks = layer_ref[0], end_ref[0], blocks_ref[0]
    query, segment, part = q_ref[...], token_ref[0], pl.program_id(2)
    heads, h = query.shape

    def add_keys(block, sums):
        total, top, weight = sums
        here = pl.ds(block * TOKEN_KEYS, TOKEN_KEYS)
        scores = jnp.dot(query, k_ref[layer, here, :].T, preferred_element_type=jnp.float32)
        columns = block * TOKEN_KEYS + jnp.arange(TOKEN_KEYS)
        readable = (columns < end) & (keys_ref[here] == segment)
        scores = jnp.where(readable[None], scores, UNREADABLE)

        new_top = jnp.maximum(top, jnp.max(scores, axis=1))
        shrink, shares = jnp.exp(top - new_top), jnp.exp(scores - new_top[:, None])
        value = v_ref[layer, here, :]
        read = jnp.dot(shares.astype(value.dtype), value, preferred_element_type=jnp.float32)
        total = total * shrink[:, None] + read
        return total, new_top, weight * shrink + jnp.sum(shares, axis=1)

    nothing = (
        jnp.zeros((heads, h), jnp.float32),
        jnp.full((heads,), LEAST, jnp.float32),
        jnp.zeros((heads,), jnp.float32),
    )
    stop = jnp.minimum((part + 1) * part_blocks, (end + TOKEN_KEYS - 1) // TOKEN_KEYS)
    total, top, weight = jax.lax.fori_loop(part * part_blocks, stop, add_keys, nothing)
    weight = jnp.maximum(weight, 1e-30)
    out_ref[...] = total / weight[:, None]
    lse_ref[...] = top + jnp.log(weight)


def _merge_parts(parts_ref, lses_ref, out_ref, lse_ref):
    """Merge what one head read of the parts of a cache."""
    lses = lses_ref[...]
    top = jnp.max(lses)
    weights = jnp.exp(lses - top)
    total = jnp.sum(weights)
    out_ref[...] = jnp.sum(parts_ref[...] * weights[:, None], axis=0) / total
    lse_ref[...] = top + jnp.log(total)


def attend_blocked(q, k, v, places: Places, causal: bool, axes: RowAxes) -> Array:
    """Compute the attention of sequences [B T N H] to themselves, a block of queries at a time.

    The backward pass makes the scores again. A causal sequence that is on one device is read in
    parts, each against the keys up to its end.
    """

    def attend_rows(q, k, v, queries, keys):
        t = q.shape[1]
        if not causal or t != k.shape[2]:
            return _attend_in_blocks(q, k, v, queries, keys, causal)
        blocks = max(MIN_PREFIX_BLOCKS, -(-t // (MAX_PREFIXES * BLOCK_QUERIES)))
        length = blocks * BLOCK_QUERIES
        parts = []
        for start in range(0, t, length):
            own, prefix = slice(start, start + length), slice(start + length)
            own_places = jax.tree.map(lambda x, own=own: x[:, own], queries)
            prefix_places = jax.tree.map(lambda x, prefix=prefix: x[:, prefix], keys)
            inputs = (q[:, own], k[:, :, prefix], v[:, :, prefix], own_places, prefix_places)
            parts.append(_attend_in_blocks(*inputs, causal))
        return jnp.concatenate(parts, axis=1)

    specs, out = sequence_specs(axes)
    return on_shards(attend_rows, specs, out)(q, k, v, places, places)


def _attend_in_blocks(q, k, v, queries: Places, keys: Places, causal: bool) -> Array:
    """Compute `attend_dense` for a block of queries at a time."""
    t = q.shape[1]
    size = min(t, BLOCK_QUERIES)
    # In float32, so that the gradients of the blocks add up in it.
    k32, v32 = k.astype(jnp.float32), v.astype(jnp.float32)

    def cut(x: Array) -> Array:
        return cut_into_blocks(x, size).swapaxes(0, 1)

    @jax.checkpoint
    def attend_block(block):
        q, queries = block
        return attend_dense(q, k32.astype(k.dtype), v32.astype(v.dtype), queries, keys, causal)

    attended = jax.lax.map(attend_block, jax.tree.map(cut, (q, queries)))
    attended = checkpoint_name(attended, SAVED).swapaxes(0, 1)
    attended = attended.reshape(len(q), -1, *q.shape[2:])
    return attended[:, :t]
