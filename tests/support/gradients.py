"""Loss and gradients on a mesh, and what counts as equal."""

from functools import partial

import jax
import numpy as np

from lclm_jax.distributed.sharding import batch_sharding
from lclm_jax.model.params import abstract_params
from lclm_jax.training.optim import split_trained
from lclm_jax.training.step import objective


def loss_and_gradients(config, params, batch, mesh):
    """Computed on `mesh`, handed back on the host."""
    with jax.set_mesh(mesh):
        params = jax.device_put(
            params, jax.tree.map(lambda x: x.sharding, abstract_params(config.model, mesh))
        )
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
