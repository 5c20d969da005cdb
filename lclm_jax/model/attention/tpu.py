"""Attention on TPUs: the splash kernel of jax.experimental.pallas.

It keeps no scores in memory.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from lclm_jax.batch import Places
from lclm_jax.distributed.sharding import splits
from lclm_jax.model.attention.blocks import Part
from lclm_jax.model.attention.shards import SAVED, RowAxes, on_shards, sequence_specs
from lclm_jax.typing import Array

TILE = 128  # lengths of the kernel and of caches are multiples of this
TILES = (1024, 512, 256, TILE)  # queries and keys of a block; the largest that divides the length


def attend_splash(
    q, k, v, places: Places, causal: bool, axes: RowAxes, interpret: bool = False
) -> Array:
    """Compute the attention of sequences [B T N H] to themselves.

    Blocks of later positions are skipped.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    t, n = q.shape[1:3]
    parts = splits(axes[1])
    padded = -(-t // (TILE * parts)) * TILE * parts
    tile = _tile(padded // parts)
    shape = (padded, padded)
    mask = library.CausalMask(shape) if causal else library.FullMask(shape)
    kernel = library.make_splash_mha(
        library.MultiHeadMask([mask] * n),
        block_sizes=library.BlockSizes(tile, tile, tile, tile, tile, tile, tile, tile),
        head_shards=splits("heads"),
        q_seq_shards=parts,
        residual_checkpoint_name=SAVED,
        interpret=interpret,
    )

    def attend_rows(kernel, q, k, v, query_segments, key_segments):
        return jax.vmap(kernel)(q, k, v, library.SegmentIds(query_segments, key_segments))

    pad = partial(_pad, amount=padded - t)
    (query, key, _, query_place, key_place), _ = sequence_specs(axes)
    heads_first = PartitionSpec(query[0], query[2], query[1], None)
    segments = pad(places.segments, 1)
    scaled = _scale(q).swapaxes(1, 2)
    inputs = (pad(scaled, 2), pad(k, 2), pad(v, 2), segments, segments)
    mesh = jax.sharding.get_abstract_mesh()
    kernel_spec = None
    if not mesh.empty:
        by_head = NamedSharding(mesh, PartitionSpec(query[2], query[1]))
        kernel_spec = kernel.manual_sharding_spec(by_head)
    specs = (kernel_spec, heads_first, key, key, query_place, key_place)
    attended = on_shards(attend_rows, specs, heads_first)(kernel, *inputs)
    return attended[:, :, :t].swapaxes(1, 2)


def read_keys_splash(
    q,
    k,
    v,
    queries: Places,
    keys: Places,
    causal: bool,
    end: Array,
    own: bool,
    interpret: bool = False,
) -> Part:
    """Read keys and values [B K S H] up to `end` for queries [B T N H].

    With `own`, keys and values are those of the same tokens as the queries. Otherwise they are
    cached and all earlier, and the kernel reads the shortest of a few prefixes that holds `end`.
    On one device: call it inside a `shard_map`.
    """
    t, s = q.shape[1], k.shape[2]
    pad = partial(_pad, amount=-t % TILE)
    scaled = pad(_scale(q).swapaxes(1, 2), 2)
    query_segments = pad(queries.segments, 1)
    key_segments = jnp.where(jnp.arange(s) < end, keys.segments, 0)
    if own:
        key_segments = pad(key_segments, 1)
        inputs = (scaled, pad(k, 2), pad(v, 2), query_segments, key_segments)
        part = _read(*inputs, causal, interpret)
    else:
        lengths = prefix_lengths(s)
        branches = [partial(_read_prefix, length, interpret) for length in lengths]
        choice = sum((end > length).astype(jnp.int32) for length in lengths[:-1])
        part = jax.lax.switch(choice, branches, scaled, k, v, query_segments, key_segments)
    attended, lse = (x.swapaxes(1, 2)[:, :t] for x in part)
    return attended.astype(jnp.float32), lse


def _read_prefix(length: int, interpret: bool, q, k, v, query_segments, key_segments) -> Part:
    k, v = k[:, :, :length], v[:, :, :length]
    return _read(q, k, v, query_segments, key_segments[:, :length], False, interpret)


def _read(q, k, v, query_segments, key_segments, causal: bool, interpret: bool) -> Part:
    """Return attention [B N T H] and log-sum-exp [B N T] of queries [B N T H], heads first."""
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    shape = (q.shape[2], k.shape[2])
    mask = library.CausalMask(shape) if causal else library.FullMask(shape)
    kernel = library.make_splash_mha(
        library.MultiHeadMask([mask] * q.shape[1]),
        block_sizes=library.BlockSizes(_tile(shape[0]), _tile(shape[1]), _tile(shape[1])),
        head_shards=1,
        q_seq_shards=1,
        save_residuals=True,
        interpret=interpret,
    )
    attended, (lse,) = jax.vmap(kernel)(q, k, v, library.SegmentIds(query_segments, key_segments))
    return attended, lse


def prefix_lengths(length: int) -> list[int]:
    """Return the lengths of a cache's prefixes that are compiled.

    They are an eighth, a quarter and a half of the cache, in whole tiles, and all of it.
    """
    parts = [-(-length // (share * TILE)) * TILE for share in (8, 4, 2)]
    return [*sorted(set(parts) - {length}), length]


def _pad(x: Array, axis: int, amount: int) -> Array:
    """Put zeros at the end of an axis."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, amount)
    return jnp.pad(x, widths)


def _scale(q: Array) -> Array:
    return (q * q.shape[-1] ** -0.5).astype(q.dtype)


def _tile(length: int) -> int:
    return next(size for size in TILES if length % size == 0)
