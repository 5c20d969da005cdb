"""Cross-entropy on meshes: the values, gradients and shardings of every split of a batch."""

import jax
import numpy as np
import pytest

from lclm_jax.config import MeshConfig
from lclm_jax.distributed.sharding import make_mesh, to_spec
from lclm_jax.model.loss import cross_entropy

VOCAB, WIDTH, CHUNK = 13, 32, 3  # no mesh divides this vocabulary


@pytest.fixture
def arrays():
    draw = np.random.default_rng(7)
    hidden = draw.normal(size=(8, 8, WIDTH)).astype(np.float32)
    table = draw.normal(size=(VOCAB, WIDTH)).astype(np.float32)
    targets = draw.integers(0, VOCAB, (8, 8)).astype(np.int32)
    weights = draw.random((8, 8)) * (draw.random((8, 8)) < 0.6)
    return hidden, table, targets, weights.astype(np.float32)


def score(*arrays):
    total, losses, correct = cross_entropy(*arrays, chunk=CHUNK)
    return total, (losses, correct)


def compile_on(mesh, arrays):
    """Compile values and gradients of `score` for arrays that lie as training has them."""
    axes = ("batch", "length", None), ("vocab", "table"), ("batch", "length"), ("batch", "length")
    with jax.set_mesh(mesh):
        placed = [
            jax.device_put(array, jax.NamedSharding(mesh, to_spec(names)))
            for array, names in zip(arrays, axes, strict=True)
        ]
        function = jax.value_and_grad(score, argnums=(0, 1), has_aux=True)
        return jax.jit(function).lower(*placed).compile(), placed


@pytest.mark.parametrize(
    "shape",
    [(8, 1, 1, 1), (2, 2, 2, 1), (2, 1, 1, 4), (1, 1, 8, 1), (1, 1, 1, 8), (1, 2, 2, 2)],
    ids=str,
)
def test_a_mesh_gives_what_one_device_gives(arrays, shape):
    on_one_device, placed = compile_on(make_mesh(MeshConfig(data=1), jax.devices()[:1]), arrays)
    expected = on_one_device(*placed)
    on_mesh, placed = compile_on(make_mesh(MeshConfig(*shape), jax.devices()), arrays)
    result = on_mesh(*placed)
    for value, reference in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(value, reference, rtol=2e-5, atol=1e-6)
    for gradient, array in zip(result[1], placed[:2], strict=True):
        assert gradient.sharding.is_equivalent_to(array.sharding, array.ndim)


def test_logits_are_split_over_the_vocabulary(arrays):
    """Eight devices hold two entries each of the vocabulary, padded to 16."""
    mesh = make_mesh(MeshConfig(1, 1, 1, 8), jax.devices())
    text = compile_on(mesh, arrays)[0].as_text()
    assert f"f32[{CHUNK},2]" in text
    assert f"f32[{CHUNK},{VOCAB}]" not in text and f"f32[{CHUNK},16]" not in text


def test_losses_and_best_guesses_are_those_of_all_logits(arrays):
    hidden, table, targets, weights = arrays
    logits = np.einsum("BTD,VD->BTV", *(x.astype(np.float64) for x in (hidden, table)))
    guesses = logits.argmax(-1)
    targets[:4] = guesses[:4]
    log_sums = np.log(np.exp(logits).sum(-1))
    losses = log_sums - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    total, (actual_losses, correct) = score(hidden, table, targets, weights)
    np.testing.assert_allclose(actual_losses, np.where(weights > 0, losses, 0), 1e-5, 1e-6)
    np.testing.assert_allclose(total, (losses * weights).sum(), rtol=1e-5)
    np.testing.assert_array_equal(correct, (guesses == targets) & (weights > 0))
    assert correct.dtype == actual_losses.dtype == np.float32


@pytest.mark.parametrize("dtypes", [("bfloat16", "bfloat16"), ("bfloat16", "float32")])
def test_gradients_have_the_dtype_of_their_array(arrays, dtypes):
    hidden, table, *rest = arrays
    inputs = [jax.numpy.asarray(x, dtype) for x, dtype in zip((hidden, table), dtypes, strict=True)]
    gradients = jax.grad(score, argnums=(0, 1), has_aux=True)(*inputs, *rest)[0]
    assert [gradient.dtype.name for gradient in gradients] == list(dtypes)
