"""The training state: its creation on a mesh, and what a stage takes over from the one before."""

from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lclm_jax.config import Config, ConfigError, ModelConfig, OptimizerConfig, StageConfig
from lclm_jax.costs.work import Flops, training_flops
from lclm_jax.distributed.sharding import replicated
from lclm_jax.model.params import abstract_params, component, flatten, parameter_shapes
from lclm_jax.training.optim import assign_groups, init_moments
from lclm_jax.typing import Array, Int, Params


@flax.struct.dataclass
class TrainState:
    """Parameters, optimizer state and step counters of a stage."""

    params: Params  # float32 masters
    moments: dict[str, Any]  # optax state of trained parameters, by label
    step: Int[Array, ""]  # within the stage
    skipped: Int[Array, ""]  # steps of the stage skipped because they were not finite
    failing: Int[Array, ""]  # skipped steps in a row, up to now


def trained_parts(config: Config, stage: StageConfig) -> set[str]:
    """Return those of encoder, adapter and decoder that a stage trains."""
    groups = assign_groups(list(parameter_shapes(config.model)), stage)
    return {component(label) for label in groups} - {"head"}


def step_flops(config: Config, stage: StageConfig) -> Flops:
    """Count the model FLOPs of a step of full rows on all devices.

    Encoder and adapter take none in a stage without latents.
    """
    data = config.data
    windows = (stage.row_windows or data.row_windows) if stage.has_latents else 0
    parts = trained_parts(config, stage)
    row = training_flops(config.model, data.row_positions, windows, parts)
    return row.scale(data.batch_rows)


def abstract_state(config: Config, stage: StageConfig, mesh: Mesh) -> TrainState:
    """Return a stage's state as shapes and shardings; moments are sharded as their parameters."""
    params = abstract_params(config.model, mesh)
    flat: dict[str, jax.ShapeDtypeStruct] = flatten(params)
    shapes = jax.eval_shape(partial(init_state, stage=stage, optimizer=config.optimizer), params)

    def place(path, leaf):
        name = next(
            (key.key for key in reversed(path) if isinstance(key, jax.tree_util.DictKey)), None
        )
        sharding = (
            flat[name].sharding
            if name in flat and leaf.shape == flat[name].shape
            else replicated(mesh)
        )
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, shapes).replace(params=params)


def init_state(params: Params, stage: StageConfig, optimizer: OptimizerConfig) -> TrainState:
    """Return the state in which a stage begins: these parameters and fresh moments."""
    return TrainState(
        params, init_moments(params, stage, optimizer), jnp.int32(0), jnp.int32(0), jnp.int32(0)
    )


def begin_stage(params: Params, config: Config, stage: StageConfig, mesh: Mesh) -> TrainState:
    """Return the state in which a stage begins, created in its shardings.

    With `encoder_from_decoder` the encoder starts as a copy of the decoder's first layers.
    """
    if stage.encoder_from_decoder:
        params = {**params, "encoder": first_layers(params["decoder"], config.model)}
    where = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, stage, mesh))
    return jax.jit(
        partial(init_state, stage=stage, optimizer=config.optimizer), out_shardings=where
    )(params)


def first_layers(decoder: Params, config: ModelConfig) -> Params:
    """Return an encoder made of the decoder's embedding, first layers and final norm.

    Raises ConfigError where the shapes of the two towers do not allow it.
    """
    small, large = config.encoder, config.decoder
    for name in (
        "vocab",
        "width",
        "heads",
        "kv_heads",
        "head_dim",
        "mlp",
        "rope_theta",
        "norm_eps",
    ):
        if getattr(small, name) != getattr(large, name):
            raise ConfigError(
                f"encoder_from_decoder needs equal encoder.{name} and decoder.{name}, "
                f"got {small}, {large}"
            )
    if small.layers > large.layers:
        raise ConfigError(
            f"encoder_from_decoder needs at least {small.layers} decoder layers, got {large.layers}"
        )
    return {
        **decoder,
        "layers": jax.tree.map(lambda stacked: stacked[: small.layers], decoder["layers"]),
    }
