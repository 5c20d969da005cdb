"""One device and eight compute the same, and errors name what does not divide."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from lclm_jax.config import ConfigError, MeshConfig
from lclm_jax.data.streams import PackedBatches, stage_order
from lclm_jax.optim import flatten, split_trained
from lclm_jax.sharding import batch_sharding, make_mesh
from lclm_jax.state import abstract_params, abstract_state, begin_stage
from lclm_jax.train import objective, train_step


@pytest.fixture
def batch(config, tokenizer):
    return next(iter(PackedBatches(stage_order(config, config.stages[1], tokenizer), config)))


@pytest.fixture(scope="module")
def noisy(params):
    """Residual branches start at zero; with noise on every parameter, each of them matters to the loss."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: np.asarray(x) + 0.1 * rng.normal(size=x.shape).astype(np.float32), params)


def loss_and_gradients(config, params, batch, mesh):
    """Computed on `mesh`, handed back on the host."""
    with jax.set_mesh(mesh):
        params = jax.device_put(params, jax.tree.map(lambda x: x.sharding, abstract_params(config.model, mesh)))
        trained, frozen = split_trained(params, config.stages[1])
        run = jax.jit(jax.value_and_grad(partial(objective, config=config), has_aux=True))
        (loss, _), gradients = run(trained, frozen, jax.device_put(batch, batch_sharding(mesh)))
        return jax.device_get((loss, gradients))


def assert_close(result, expected):
    """Losses within 1e-5, gradients of every parameter in `result` within 1e-4 of their norm."""
    np.testing.assert_allclose(result[0], expected[0], rtol=1e-5)
    for path, gradient in result[1].items():
        error = np.linalg.norm(gradient - expected[1][path]) / np.linalg.norm(expected[1][path])
        assert error <= 1e-4, (path, error)


def test_eight_devices_equal_one(config, noisy, batch, one_device, subtests):
    expected = loss_and_gradients(config, noisy, batch, one_device)
    for shape in ((8, 1, 1, 1), (2, 2, 1, 2), (1, 2, 4, 1), (2, 1, 2, 2)):
        with subtests.test(mesh=shape):
            result = loss_and_gradients(config, noisy, batch, make_mesh(MeshConfig(*shape)))
            assert result[1].keys() == flatten(noisy).keys()
            assert_close(result, expected)
    with subtests.test("a whole step", mesh=(1, 2, 2, 2)):
        mesh, stage = make_mesh(MeshConfig(fsdp=4, tensor=2)), config.stages[0]
        with jax.set_mesh(mesh):
            state = begin_stage(noisy, config, stage, mesh)
            step = jax.jit(partial(train_step, config=config, stage=stage), donate_argnums=0)
            after, metrics = step(state, jax.device_put(batch, batch_sharding(mesh)))
        assert int(after.step) == 1 and int(after.skipped) == 0
        means = jax.device_get(after.moments["adapter/0"][0].mu)  # after one step: the clipped gradient, by 1 - beta1
        scale = (1 - config.optimizer.beta1) * min(1.0, config.optimizer.clip / float(metrics["gradient_norm"]))
        assert_close((metrics["loss"], {path: mean / scale for path, mean in means.items()}), expected)
        # Where the state lies must not change: the second step would be compiled anew.
        for x, before in zip(jax.tree.leaves(after), jax.tree.leaves(abstract_state(config, stage, mesh)), strict=True):
            assert x.sharding.is_equivalent_to(before.sharding, x.ndim)


def test_parameters_are_split_over_the_mesh(model_config):
    """No device holds the whole of a matrix; norms and biases are on all."""
    for path, leaf in flatten(abstract_params(model_config, make_mesh(MeshConfig(fsdp=4, tensor=2)))).items():
        matrix = not path.endswith(("scale", "bias"))
        assert leaf.sharding.is_fully_replicated != matrix, path


def test_mesh_must_fill_the_devices():
    with pytest.raises(ConfigError, match="does not fill 8 devices; set mesh"):
        make_mesh(MeshConfig(data=3, fsdp=1))


def test_dimension_that_does_not_divide(config):
    odd = replace(config.model.encoder, mlp=33)
    with pytest.raises(ConfigError, match=r"mlp.*does not divide"):
        abstract_params(replace(config.model, encoder=odd), make_mesh(MeshConfig(fsdp=4, tensor=2)))
