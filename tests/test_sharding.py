"""One device and eight compute the same, and errors name what does not divide."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from lclm_jax.config import ConfigError, MeshConfig
from lclm_jax.data.streams import PackedBatches, stage_examples
from lclm_jax.optim import flatten, split_trained
from lclm_jax.sharding import batch_sharding, make_mesh
from lclm_jax.state import abstract_params, abstract_state, begin_stage, init_params
from lclm_jax.train import objective, train_step


@pytest.fixture
def batch(config, tokenizer):
    return next(iter(PackedBatches(stage_examples(config, config.stages[1], tokenizer), config)))


def loss_and_gradients(config, batch, mesh_config, devices):
    mesh = make_mesh(mesh_config, devices)
    with jax.set_mesh(mesh):
        params = init_params(config.model, mesh, seed=0)
        params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params)
        params = jax.device_put(params, jax.tree.map(lambda x: x.sharding, abstract_params(config.model, mesh)))
        trained, frozen = split_trained(params, config.stages[1])
        run = jax.jit(jax.value_and_grad(partial(objective, config=config), has_aux=True))
        (loss, _), gradients = run(trained, frozen, jax.device_put(batch, batch_sharding(mesh)))
        return float(loss), jax.device_get(gradients), params


@pytest.mark.parametrize("mesh", [MeshConfig(8, 1, 1), MeshConfig(1, 8, 1), MeshConfig(2, 2, 2), MeshConfig(1, 4, 2)])
def test_eight_devices_equal_one(config, batch, mesh):
    loss, gradients, _ = loss_and_gradients(config, batch, MeshConfig(1, 1, 1), jax.devices()[:1])
    sharded_loss, sharded_gradients, params = loss_and_gradients(config, batch, mesh, None)
    assert abs(sharded_loss - loss) <= 1e-5 * abs(loss)
    assert gradients.keys() == sharded_gradients.keys()
    for path, expected in gradients.items():
        error = np.linalg.norm(sharded_gradients[path] - expected) / max(np.linalg.norm(expected), 1e-8)
        assert error <= 1e-4, (path, error)
    if mesh.fsdp > 1:
        split = flatten(params)["decoder/layers/mlp/up"].sharding
        assert not split.is_fully_replicated


def test_a_whole_step_runs_sharded(config, batch):
    mesh = make_mesh(MeshConfig(2, 2, 2))
    stage = config.stages[0]
    with jax.set_mesh(mesh):
        state = begin_stage(init_params(config.model, mesh, 0), config, stage, mesh)
        expected = jax.tree.map(lambda x: x.sharding, abstract_state(config, stage, mesh))
        step = jax.jit(partial(train_step, config=config, stage=stage), out_shardings=(expected, None))
        after, metrics = step(state, jax.device_put(batch, batch_sharding(mesh)))
    assert int(after.step) == 1 and int(after.skipped) == 0
    assert np.isfinite(float(metrics["loss"]))


def test_mesh_must_fill_the_devices():
    with pytest.raises(ConfigError, match="does not fill 8 devices; set mesh"):
        make_mesh(MeshConfig(3, 1, 1))


def test_dimension_that_does_not_divide(config):
    odd = dataclasses.replace(config.model.encoder, mlp=33)
    with pytest.raises(ConfigError, match=r"mlp.*does not divide"):
        abstract_params(dataclasses.replace(config.model, encoder=odd), make_mesh(MeshConfig(1, 4, 2)))
