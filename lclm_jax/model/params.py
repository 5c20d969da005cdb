"""Parameters of a model: random ones, their shapes and shardings, and their paths."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from lclm_jax.batch import Batch, empty_batch, empty_windows
from lclm_jax.config import ModelConfig
from lclm_jax.distributed.sharding import shardings
from lclm_jax.model.lclm import LCLM
from lclm_jax.typing import Array, Params

Flat = dict[str, Array]  # path, as in "encoder/layers/mlp/up" -> array


def init_params(config: ModelConfig, mesh: Mesh, seed: int) -> Params:
    """Return random parameters, made on the devices where they belong."""
    where = jax.tree.map(lambda leaf: leaf.sharding, abstract_params(config, mesh))
    build = jax.jit(lambda rng: nn.meta.unbox(init_boxed(config, rng)), out_shardings=where)
    return build(jax.random.key(seed))


def init_boxed(config: ModelConfig, rng: jax.Array) -> Params:
    """Return random parameters in flax's boxes, which carry their logical axes.

    They are made by reading one row, which no mesh splits.
    """
    batch = empty_batch(1, 8, empty_windows(1, 1, config.window_length, 1))
    with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):
        variables: Any = LCLM(config).init(rng, batch, method=_use_all_parameters)
    return variables["params"]


def _use_all_parameters(model: LCLM, batch: Batch) -> Array:
    return model.logits(model(batch))


def abstract_params(config: ModelConfig, mesh: Mesh, dtype: str = "float32") -> Params:
    """Return the shapes, dtypes and shardings of all parameters; nothing is allocated."""
    boxed = _boxed_shapes(config)

    def describe(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype), sharding=sharding)

    return jax.tree.map(describe, nn.meta.unbox(boxed), shardings(boxed, mesh))


@cache
def count_parameters(config: ModelConfig) -> int:
    """Return the number of parameters of all components."""
    return sum(leaf.size for leaf in jax.tree.leaves(_boxed_shapes(config)))


def _boxed_shapes(config: ModelConfig) -> Params:
    return jax.eval_shape(lambda: init_boxed(config, jax.random.key(0)))


def flatten(params: Params) -> dict[str, Any]:
    """Return a flat dict of the parameters by path, arrays or whatever describes them."""
    flat: Any = flax.traverse_util.flatten_dict(params, sep="/")
    return flat


def unflatten(flat: Mapping[str, Any]) -> Params:
    """Return the nested dict of parameters by path, as `flatten` was given it."""
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def component(path: str) -> str:
    """Return the component that a path belongs to: the first part of the path."""
    return path.split("/")[0]


@cache
def parameter_shapes(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """Return the shape of every parameter by its path; nothing is allocated."""
    shapes = nn.meta.unbox(_boxed_shapes(config))
    return {path: tuple(leaf.shape) for path, leaf in flatten(shapes).items()}
