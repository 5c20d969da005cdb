"""Parameters of a model: random ones, their shapes and shardings, and their paths."""

from functools import cache
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from lclm_jax.batch import empty_batch, empty_windows
from lclm_jax.config import ModelConfig
from lclm_jax.distributed.sharding import shardings
from lclm_jax.model.lclm import LCLM
from lclm_jax.typing import Array, Params

Flat = dict[str, Array]  # path, as in "encoder/layers/mlp/up" -> array


def init_params(config: ModelConfig, mesh: Mesh, seed: int) -> Params:
    """Random parameters, born sharded."""
    where = jax.tree.map(lambda leaf: leaf.sharding, abstract_params(config, mesh))
    build = jax.jit(lambda rng: nn.meta.unbox(init_boxed(config, rng)), out_shardings=where)
    return build(jax.random.key(seed))


def init_boxed(config: ModelConfig, rng: Array) -> Params:
    """Random parameters in their boxes of logical axes; made from one row, which no mesh splits."""
    batch = empty_batch(1, 8, empty_windows(1, 1, config.window_length, 1))
    with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):
        variables: Any = LCLM(config).init(rng, batch, method=_touch_all)
    return variables["params"]


def _touch_all(model: LCLM, batch):
    return model.logits(model(batch))


def abstract_params(config: ModelConfig, mesh: Mesh, dtype: str = "float32") -> Params:
    """Shapes, dtypes and shardings of all parameters; nothing is allocated."""
    boxed = jax.eval_shape(lambda: init_boxed(config, jax.random.key(0)))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, jnp.dtype(dtype), sharding=sharding
        ),
        nn.meta.unbox(boxed),
        shardings(boxed, mesh),
    )


@cache
def count_parameters(config: ModelConfig) -> int:
    return sum(
        leaf.size
        for leaf in jax.tree.leaves(jax.eval_shape(lambda: init_boxed(config, jax.random.key(0))))
    )


def flatten(params: Params) -> Flat:
    flat: Any = flax.traverse_util.flatten_dict(params, sep="/")
    return flat


def unflatten(flat: Flat) -> Params:
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def component(path: str) -> str:
    return path.split("/")[0]
