"""Attention within segments: one function, and four ways to compute it, chosen by the chips of the mesh in scope.

All of them are equal; they differ in what they hold in memory: all scores at once, those of a block of queries and all keys or
the keys it may read, or none.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding, PartitionSpec

from lclm_jax.model.masks import Places, attention_mask
from lclm_jax.model.stretches import SAVED, read_row
from lclm_jax.sharding import platform, splits, to_spec
from lclm_jax.typing import Array, Float, typed

QUERIES_AT_ONCE = 256  # of `blocked`
PREFIXES = 8  # of keys, at most, by which `blocked` is spared most of what no causal query may read
BLOCKS = 4  # of queries that share a prefix, at least
STRETCH = 128  # of `stretched`: queries at once, and the shortest stretch of keys
TILE = 128  # what the lengths of `splash` and of caches are multiples of
TILES = (1024, 512, 256, TILE)  # of queries and of keys; the largest that divides the length
RowAxes = tuple[str, str | None]  # logical axes of the rows and of their positions

Backend = Callable[..., Array]  # (q, k, v, places, causal, axes) -> [B T N H]


@typed
def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    queries: Places,
    causal: bool,
    axes: RowAxes = ("batch", "length"),
) -> Float[Array, "B T N H"]:
    """Softmax attention within segments, scores in float32, scaled by H ** -0.5. A query that sees nothing gets no meaning.

    A sequence attends to itself; its positions grow along every segment.
    """
    with jax.named_scope("attend"):
        return BACKENDS.get(platform(), reference)(q, k, v, queries, causal, axes)


@typed
def attend_after(
    q: Float[Array, "B T N H"],
    own: tuple[Float[Array, "B K T H"], Float[Array, "B K T H"]],
    queries: Places,
    cached: tuple[Float[Array, "B K S H"], Float[Array, "B K S H"]],
    places: Places,
    causal: bool,
) -> Float[Array, "B T N H"]:
    """`attend` for the few tokens that follow a cache: to what it holds and to themselves.

    The cache is read where it lies: it needs no room for these tokens yet, and nothing of it is copied.
    """
    with jax.named_scope("attend"):
        b, t, n, h = q.shape
        grouped = (q * h**-0.5).astype(q.dtype).reshape(b, t, own[0].shape[1], -1, h)

        def scores(keys: Array, where: Places) -> Array:
            dots = jnp.einsum("BTKGH,BKSH->BKGTS", grouped, keys, preferred_element_type=jnp.float32)
            return jnp.where(attention_mask(queries, where, causal)[:, None, None], dots, jnp.finfo(jnp.float32).min)

        def gather(shares: Array, values: Array) -> Array:
            return jnp.einsum("BKGTS,BKSH->BKGTH", shares.astype(values.dtype), values, preferred_element_type=jnp.float32)

        (keys, values), length = cached, places.segments.shape[1]
        shares = jax.nn.softmax(jnp.concatenate([scores(keys, places), scores(own[0], queries)], axis=-1), axis=-1)
        attended = gather(shares[..., :length], values) + gather(shares[..., length:], own[1])
        # Put in order afterwards: XLA cannot multiply bfloat16 into this order on a CPU.
        return attended.transpose(0, 3, 1, 2, 4).reshape(b, t, n, h).astype(q.dtype)


def reference(q, k, v, places: Places, causal: bool, axes: RowAxes | None = None) -> Array:
    """All scores at once."""
    return _dense(q, k, v, places, places, causal)


def _dense(q, k, v, queries: Places, keys: Places, causal: bool) -> Array:
    mask = attention_mask(queries, keys, causal)[:, None]
    return jax.nn.dot_product_attention(q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask=mask)


def blocked(q, k, v, places: Places, causal: bool, axes: RowAxes) -> Array:
    """The scores of a few queries at a time, made once more in the backward pass; for GPUs.

    A sequence that is on one device and causal is read in parts, each against the keys up to its end.
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
            parts.append(_in_blocks(q[:, own], k[:, :, seen], v[:, :, seen], at_query, at_key, causal))
        return jnp.concatenate(parts, axis=1)

    query, key, at_query, at_key = _specs(axes)
    specs = (query, key, key, Places(at_query, at_query), Places(at_key, at_key))
    return _on_shards(local, specs, query)(q, k, v, places, places)


def _in_blocks(q, k, v, queries: Places, keys: Places, causal: bool) -> Array:
    """`_dense` for QUERIES_AT_ONCE at a time."""
    t = q.shape[1]
    size = min(t, QUERIES_AT_ONCE)
    k32, v32 = k.astype(jnp.float32), v.astype(jnp.float32)  # so that gradients of the blocks add up in float32

    def blocks(x):
        x = jnp.pad(x, ((0, 0), (0, -t % size)) + ((0, 0),) * (x.ndim - 2))
        return x.reshape(len(x), -1, size, *x.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint
    def one(block):
        return _dense(block[0], k32.astype(k.dtype), v32.astype(v.dtype), block[1], keys, causal)

    attended = checkpoint_name(jax.lax.map(one, jax.tree.map(blocks, (q, queries))), SAVED)
    return attended.swapaxes(0, 1).reshape(len(q), -1, *q.shape[2:])[:, :t]


def stretched(q, k, v, places: Places, causal: bool, axes: RowAxes) -> Array:
    """A few queries at a time against the stretch of keys they may read, once more in the backward pass; for CPUs.

    Packed examples are short beside their row: most scores are never made. Stretches have few lengths, each compiled by
    itself. Heads that share keys and values lie side by side in one product.
    """

    def local(q, k, v, queries, keys):
        (b, t, n, h), groups = q.shape, k.shape[1]
        size = min(t, STRETCH)

        def blocks(x):
            x = jnp.pad(x, ((0, 0), (0, -t % size)) + ((0, 0),) * (x.ndim - 2))
            return x.reshape(b, -1, size, *x.shape[2:])

        heads_first = jnp.moveaxis(blocks(q.reshape(b, t, groups, -1, h)), 2, 4).reshape(b, -1, groups, n // groups * size, h)
        one_row = partial(read_row, causal)
        rows = (heads_first, k, v, jax.tree.map(blocks, queries), keys)
        attended = jax.lax.map(lambda row: one_row(*row), rows).reshape(b, -1, groups, n // groups, size, h)
        return jnp.moveaxis(attended, 4, 2).reshape(b, -1, n, h)[:, :t]

    query, key, at_query, at_key = _specs(axes)
    specs = (query, key, key, Places(at_query, at_query), Places(at_key, at_key))
    return _on_shards(local, specs, query)(q, k, v, places, places)


def splash(q, k, v, places: Places, causal: bool, axes: RowAxes, interpret: bool = False) -> Array:
    """The kernel of jax.experimental.pallas.ops.tpu: no scores in memory, blocks of later positions skipped; for TPUs."""
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    t, n = q.shape[1:3]
    parts = splits(axes[1])
    padded = -(-t // (TILE * parts)) * TILE * parts
    tile = next(size for size in TILES if padded // parts % size == 0)
    mask = library.CausalMask((padded, padded)) if causal else library.FullMask((padded, padded))
    kernel = library.make_splash_mha(
        library.MultiHeadMask([mask] * n),
        block_sizes=library.BlockSizes(*[tile] * 8),
        head_shards=splits("heads"),
        q_seq_shards=parts,
        residual_checkpoint_name=SAVED,
        interpret=interpret,
    )

    def local(kernel, q, k, v, at_query, at_key):
        return jax.vmap(kernel)(q, k, v, library.SegmentIds(at_query, at_key))

    def pad(x, axis):
        return jnp.pad(x, [(0, padded - t if i == axis else 0) for i in range(x.ndim)])

    query, key, at_query, at_key = _specs(axes)
    heads_first = PartitionSpec(query[0], query[2], query[1], None)
    scaled = (q * q.shape[-1] ** -0.5).astype(q.dtype).swapaxes(1, 2)
    inputs = (pad(scaled, 2), pad(k, 2), pad(v, 2), pad(places.segments, 1), pad(places.segments, 1))
    mesh = jax.sharding.get_abstract_mesh()
    told = None if mesh.empty else kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(query[2], query[1])))
    attended = _on_shards(local, (told, heads_first, key, key, at_query, at_key), heads_first)(kernel, *inputs)
    return attended[:, :, :t].swapaxes(1, 2)


def _specs(axes: RowAxes) -> tuple[PartitionSpec, ...]:
    """Of q, of k and v, and of the places of both: every part of a sequence's queries meets all of its keys."""
    rows, length = axes
    return (
        to_spec((rows, length, "heads", "head_dim")),
        to_spec((rows, "kv_heads", None, "head_dim")),
        to_spec((rows, length)),
        to_spec((rows, None)),
    )


def _on_shards(local: Callable[..., Array], specs: tuple, out: PartitionSpec) -> Callable[..., Array]:
    """`local` on every device's part of the arrays; without a mesh in scope, on all of them."""
    if jax.sharding.get_abstract_mesh().empty:
        return local
    return jax.shard_map(local, in_specs=specs, out_specs=out, check_vma=False)


BACKENDS: dict[str, Backend] = {"cpu": stretched, "tpu": splash, "gpu": blocked}
