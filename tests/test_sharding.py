"""One device and eight compute the same, and errors name what does not divide."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from lclm_jax.config import ConfigError, MeshConfig
from lclm_jax.data.streams import PackedBatches, stage_examples
from lclm_jax.optim import flatten, split_trained
from lclm_jax.sharding import batch_sharding, make_mesh
from lclm_jax.state import abstract_params, abstract_state, begin_stage
from lclm_jax.train import objective, train_step


@pytest.fixture
def batch(config, tokenizer):
    return next(iter(PackedBatches(stage_examples(config, config.stages[1], tokenizer), config)))


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
        return float(loss), jax.device_get(gradients)


def test_eight_devices_equal_one(config, noisy, batch, one_device, subtests):
    loss, gradients = loss_and_gradients(config, noisy, batch, one_device)
    for shape in ((8, 1, 1), (2, 2, 2), (1, 4, 2)):
        with subtests.test(mesh=shape):
            sharded_loss, sharded_gradients = loss_and_gradients(config, noisy, batch, make_mesh(MeshConfig(*shape)))
            assert abs(sharded_loss - loss) <= 1e-5 * abs(loss)
            assert gradients.keys() == sharded_gradients.keys()
            for path, expected in gradients.items():
                error = np.linalg.norm(sharded_gradients[path] - expected) / np.linalg.norm(expected)
                assert error <= 1e-4, (path, error)


def test_a_whole_step_runs_sharded(config, noisy, batch):
    mesh, stage = make_mesh(MeshConfig(2, 2, 2)), config.stages[0]
    with jax.set_mesh(mesh):
        state = begin_stage(noisy, config, stage, mesh)
        expected = jax.tree.map(lambda x: x.sharding, abstract_state(config, stage, mesh))
        step = jax.jit(partial(train_step, config=config, stage=stage), out_shardings=(expected, None))
        after, metrics = step(state, jax.device_put(batch, batch_sharding(mesh)))
    assert int(after.step) == 1 and int(after.skipped) == 0
    assert np.isfinite(float(metrics["loss"]))


def test_parameters_are_split_over_the_mesh(model_config):
    """No device holds the whole of a matrix; norms and biases are on all."""
    for path, leaf in flatten(abstract_params(model_config, make_mesh(MeshConfig(1, 4, 2)))).items():
        matrix = not path.endswith(("scale", "bias"))
        assert leaf.sharding.is_fully_replicated != matrix, path


def test_mesh_must_fill_the_devices():
    with pytest.raises(ConfigError, match="does not fill 8 devices; set mesh"):
        make_mesh(MeshConfig(3, 1, 1))


def test_dimension_that_does_not_divide(config):
    odd = replace(config.model.encoder, mlp=33)
    with pytest.raises(ConfigError, match=r"mlp.*does not divide"):
        abstract_params(replace(config.model, encoder=odd), make_mesh(MeshConfig(1, 4, 2)))
