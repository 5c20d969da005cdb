"""Arguments of the programs whose capacity is measured."""

import jax
import pytest

from configs.tiny import config as tiny_config
from lclm_jax.capacity.programs import abstract_weights
from lclm_jax.config import MeshConfig
from lclm_jax.distributed.sharding import make_mesh
from lclm_jax.inference.language_model import serving_params
from lclm_jax.model.params import init_params


@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(tensor=2)])
def test_weights_have_the_layout_in_which_they_are_served(mesh):
    config, mesh = tiny_config().model, make_mesh(mesh, jax.devices()[: mesh.tensor])
    with jax.set_mesh(mesh):
        served = serving_params(init_params(config, mesh, seed=0), config)
        expected = abstract_weights(config, mesh)
    actual = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), served)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), expected)
    assert actual == shapes
    for own, abstract in zip(jax.tree.leaves(served), jax.tree.leaves(expected), strict=True):
        assert own.sharding.is_equivalent_to(abstract.sharding, own.ndim)
