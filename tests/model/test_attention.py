"""All back ends of attention agree, forward and backward.

On one device, and on meshes that split sequences and heads.
"""

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
BACKENDS = {
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
    """Make queries, keys, values, and the places of two or three packed examples and padding."""
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
    segment_starts = np.max(
        np.where(starts[:, None, :] <= index[None, :, None], starts[:, None, :], 0), axis=-1
    )
    return (
        q,
        k,
        v,
        Places(segments.astype(np.int32), (index[None] - segment_starts).astype(np.int32)),
    )


def run_backend(backend, q, k, v, places, causal, mesh, axes=("batch", "length")):
    """Return the output of queries that are no padding, and gradients of a random projection."""
    weights = (
        np.random.default_rng(0).normal(size=q.shape).astype(np.float32)
        * (places.segments > 0)[..., None, None]
    )

    def loss(q, k, v):
        attended = backend(q, k, v, places, causal, axes)
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


def assert_close(actual, expected):
    """Compare pairs of arrays, to within a share of the largest value of each."""
    for array, reference_array in zip(actual, expected, strict=True):
        atol = 2e-5 * np.abs(reference_array).max()
        np.testing.assert_allclose(array, reference_array, atol=atol)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("length", "causal"), [(512, True), (200, True), (256, False)])
def test_back_ends_agree(backend, length, causal, mesh):
    tensors = inputs(length)
    # Axes of the decoder, and of a bidirectional encoder.
    axes = ("batch", "length") if causal else ("windows", None)
    expected = run_backend(reference.attend_reference, *tensors, causal, None)
    actual = run_backend(BACKENDS[backend], *tensors, causal, MESHES[mesh], axes)
    assert_close(actual, expected)


def test_blocks_of_a_causal_sequence_skip_most_later_keys():
    """The sequence has parts of several blocks and a shorter last one."""
    *tensors, places = jax.tree.map(lambda x: x[:1], inputs(2500))

    def count_flops(backend, causal):
        axes = ("batch", "length")
        run = jax.make_jaxpr(lambda q, k, v: backend(q, k, v, places, causal, axes))
        return matmul_flops(run(*tensors).jaxpr).total()

    all_scores = count_flops(reference.attend_reference, True)
    assert count_flops(gpu.attend_blocked, False) >= all_scores
    assert count_flops(gpu.attend_blocked, True) < 0.72 * all_scores
    actual, expected = (
        run_backend(backend, *tensors, places, True, None)
        for backend in (gpu.attend_blocked, reference.attend_reference)
    )
    assert_close(actual, expected)


@pytest.mark.parametrize("backend", ["blocked", "ranges"])
def test_blocks_hold_no_whole_matrix_of_scores(backend):
    """Scores [B N T S] and their masks exist for one block of queries at a time.

    In the backward pass, too, and not before a scan over layers.
    """
    q, k, v, places = inputs(2048)

    def temporary_bytes(backend):
        def loss(q, k, v):
            layers = jax.lax.scan(
                lambda x, _: (backend(x, k, v, places, True, ("batch", "length")), None),
                q,
                length=1,
            )
            return jnp.sum(layers[0])

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(q, k, v).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole = ROWS * HEADS * 2048 * 2048 * 4
    assert temporary_bytes(reference.attend_reference) > whole, "the reference must hold them"
    assert temporary_bytes(BACKENDS[backend]) < whole


def test_the_chips_in_scope_choose_the_back_end(monkeypatch):
    tensors = inputs(128)
    called = []
    backends = {
        name: lambda *inputs, name=name: called.append(name) or reference.attend_reference(*inputs)
        for name in ("tpu", "gpu")
    }
    monkeypatch.setattr(dispatch, "BACKENDS", backends)
    for name in ("tpu", "gpu", "cpu"):
        monkeypatch.setattr(dispatch, "platform", lambda name=name: name)
        dispatch.attend(*tensors, True)
    assert called == ["tpu", "gpu"]


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("causal", [True, False])
def test_flash_kernels_are_given_the_bounds_of_segments(monkeypatch, causal, mesh):
    """tokamax's own reference takes the place of the kernels, which need a card."""
    base = pytest.importorskip("tokamax._src.ops.attention.base")
    reference_kernels = base.DotProductAttention(), base.DotProductAttentionVjp()
    monkeypatch.setattr(gpu, "kernels", lambda: reference_kernels)
    tensors = inputs(256)
    axes = ("batch", "length") if causal else ("windows", None)
    expected = run_backend(reference.attend_reference, *tensors, causal, None)
    actual = run_backend(gpu.attend_flash, *tensors, causal, MESHES[mesh], axes)
    assert_close(actual, expected)


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
    arrays = jax.tree.map(jnp.asarray, (q, keys, values, queries, cached))
    arguments = (*arrays, True, jnp.int32(end))
    actual, lse = gpu.read_keys_flash(*arguments, own=False)
    attended, expected_lse = blocks.read_keys(*arguments)
    floor = partial(np.maximum, -1e30)
    np.testing.assert_allclose(floor(lse), floor(expected_lse), atol=2e-5)
    if end:
        np.testing.assert_allclose(actual, attended, atol=2e-5)
