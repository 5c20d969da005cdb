"""The ways to compute attention agree, forward and backward, on one device and on parts of sequences and heads."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lclm_jax.batch import Places
from lclm_jax.capacity.flops import matmul_flops
from lclm_jax.config import MeshConfig
from lclm_jax.distributed.sharding import make_mesh
from lclm_jax.model.attention import blocks, cpu, dispatch, gpu, reference, tpu

pytestmark = pytest.mark.image

ROWS, HEADS, KV_HEADS, WIDTH = 4, 4, 2, 128
WAYS = {
    "blocked": gpu.attend_blocked,
    "ranges": cpu.attend_cpu,
    "splash": partial(tpu.attend_splash, interpret=True),
}
MESHES = {
    "no mesh": None,
    "rows": MeshConfig(data=2, fsdp=1),
    "parts of sequences and heads": MeshConfig(data=1, fsdp=2, context=2, tensor=2),
}


def inputs(length):
    """Queries, keys, values, and the places of two or three packed examples and padding."""
    rng = np.random.default_rng(length)
    q, k, v = (
        rng.normal(size=(ROWS, *shape, WIDTH)).astype(np.float32)
        for shape in ((length, HEADS), (KV_HEADS, length), (KV_HEADS, length))
    )
    cuts = np.array(
        [
            [length // 3, length // 2, length - 9],
            [length // 5, length, length],
            [length] * 3,
            [5, 6, 7],
        ]
    )
    index = np.arange(length)
    segments = 1 + (index[None, :, None] >= cuts[:, None, :]).sum(-1)
    segments = np.where(index[None] >= cuts.max(1, keepdims=True), 0, segments)
    starts = np.concatenate([np.zeros((ROWS, 1), int), cuts], axis=1)
    begun = np.max(
        np.where(starts[:, None, :] <= index[None, :, None], starts[:, None, :], 0), axis=-1
    )
    return q, k, v, Places(segments.astype(np.int32), (index[None] - begun).astype(np.int32))


def result(way, q, k, v, places, causal, mesh, axes=("batch", "length")):
    """What real queries get, and the gradients of a random projection of it."""
    weights = (
        np.random.default_rng(0).normal(size=q.shape).astype(np.float32)
        * (places.segments > 0)[..., None, None]
    )

    def loss(q, k, v):
        attended = way(q, k, v, places, causal, axes)
        return jnp.sum(attended * weights), attended

    run = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
    if mesh is None:
        gradients, attended = run(q, k, v)
    else:
        count = abs(np.prod([mesh.data, mesh.fsdp, mesh.context, mesh.tensor]))
        with jax.set_mesh(make_mesh(mesh, jax.devices()[:count])):
            gradients, attended = run(q, k, v)
    return np.asarray(attended) * (places.segments > 0)[..., None, None], *map(
        np.asarray, gradients
    )


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("length", "causal"), [(512, True), (200, True), (256, False)])
def test_the_ways_agree(way, length, causal, mesh):
    tensors = inputs(length)
    axes = (
        ("batch", "length") if causal else ("windows", None)
    )  # as the decoder has them, and a bidirectional encoder
    expected = result(reference.attend_reference, *tensors, causal, None)
    found = result(WAYS[way], *tensors, causal, MESHES[mesh], axes)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * np.abs(other).max())


def test_a_causal_sequence_is_spared_most_of_what_lies_ahead():
    """In parts of several blocks and a last one that is shorter, which agree with the reference."""
    *tensors, places = jax.tree.map(lambda x: x[:1], inputs(2500))

    def products(way, causal):
        run = jax.make_jaxpr(lambda q, k, v: way(q, k, v, places, causal, ("batch", "length")))
        return matmul_flops(run(*tensors).jaxpr).total()

    everything = products(reference.attend_reference, True)
    assert products(gpu.attend_blocked, False) >= everything
    assert products(gpu.attend_blocked, True) < 0.72 * everything
    found, expected = (
        result(way, *tensors, places, True, None)
        for way in (gpu.attend_blocked, reference.attend_reference)
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * np.abs(other).max())


@pytest.mark.parametrize("way", ["blocked", "ranges"])
def test_blocks_hold_no_whole_matrix_of_scores(way):
    """Of [B N T S] scores or their masks, never more than those of a block of queries exist, in the backward pass neither and
    not before a scan over layers."""
    q, k, v, places = inputs(2048)

    def held(way):
        def loss(q, k, v):
            layers = jax.lax.scan(
                lambda x, _: (way(x, k, v, places, True, ("batch", "length")), None), q, length=1
            )
            return jnp.sum(layers[0])

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(q, k, v).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole = ROWS * HEADS * 2048 * 2048 * 4
    assert held(reference.attend_reference) > whole, "the yardstick must hold them"
    assert held(WAYS[way]) < whole


def test_the_chips_of_the_mesh_decide(monkeypatch):
    tensors = inputs(128)
    called = []
    ways = {
        name: lambda *inputs, name=name: called.append(name) or reference.attend_reference(*inputs)
        for name in ("tpu", "gpu")
    }
    monkeypatch.setattr(dispatch, "BACKENDS", ways)
    for name in ("tpu", "gpu", "cpu"):
        monkeypatch.setattr(dispatch, "platform", lambda name=name: name)
        dispatch.attend(*tensors, True)
    assert called == ["tpu", "gpu"]


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("causal", [True, False])
def test_flash_kernels_are_given_the_bounds_of_segments(monkeypatch, causal, mesh):
    """With tokamax's own reference in place of the kernels, which need a card."""
    base = pytest.importorskip("tokamax._src.ops.attention.base")
    reference_kernels = base.DotProductAttention(), base.DotProductAttentionVjp()
    monkeypatch.setattr(gpu, "kernels", lambda: reference_kernels)
    tensors = inputs(256)
    axes = ("batch", "length") if causal else ("windows", None)
    expected = result(reference.attend_reference, *tensors, causal, None)
    found = result(gpu.attend_flash, *tensors, causal, MESHES[mesh], axes)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * np.abs(other).max())


@pytest.mark.parametrize("end", [0, 7, 512])
def test_flash_kernels_read_a_cache_up_to_its_end(monkeypatch, end):
    base = pytest.importorskip("tokamax._src.ops.attention.base")
    monkeypatch.setattr(gpu, "kernels", lambda: (base.DotProductAttention(), None))
    monkeypatch.setattr(gpu, "has_flash", lambda q: True)
    q, _, _, places = inputs(128)
    rng = np.random.default_rng(1)
    keys, values = rng.normal(size=(2, ROWS, KV_HEADS, 512, WIDTH)).astype(np.float32)
    used = np.broadcast_to(np.arange(512) < end, (ROWS, 512)).astype(np.int32)
    cached, queries = (
        Places(used, used * 0),
        Places(np.ones_like(places.segments), places.positions),
    )
    inputs_of = jax.tree.map(jnp.asarray, (q, keys, values, queries, cached))
    inputs_of = (*inputs_of, True, jnp.int32(end))
    found, lse = gpu.read_keys_flash(*inputs_of, own=False)
    attended, expected_lse = blocks.read_keys(*inputs_of)
    floor = partial(np.maximum, -1e30)
    np.testing.assert_allclose(floor(lse), floor(expected_lse), atol=2e-5)
    if end:
        np.testing.assert_allclose(found, attended, atol=2e-5)
