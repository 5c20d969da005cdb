"""The programs that are fitted: the very functions that train and serve, traced on shapes and shardings alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.extend.core import Literal as Constant
from jax.sharding import Mesh, NamedSharding

from lclm_jax.config import Config, ModelConfig, StageConfig
from lclm_jax.cost import Flops, layer_flops, training_flops
from lclm_jax.data.batch import empty_batch, empty_windows
from lclm_jax.data.spans import count_latents
from lclm_jax.data.streams import budget
from lclm_jax.generate import Prompt, decode_step, prefill
from lclm_jax.hardware import Slice
from lclm_jax.language_model import WINDOWS_AT_ONCE, pool_windows
from lclm_jax.model.attention import CACHE_AXES, Cache
from lclm_jax.model.masks import Places
from lclm_jax.model.transformer import cache_length
from lclm_jax.sharding import batch_sharding, check_batches, make_mesh, replicated, serving_mesh, to_spec
from lclm_jax.state import abstract_params, abstract_state, trained_parts
from lclm_jax.step import train_step

ROOM = 1024  # positions of a cache for what is asked and answered about a context
Job = Literal["train", "compress", "prefill", "decode"]


@dataclass(frozen=True)
class Call:
    """A jitted function and its abstract arguments, which say how they are sharded."""

    function: Any
    arguments: tuple[Any, ...]
    settings: dict[str, Any]  # static

    def trace(self) -> jax.stages.Traced:
        """Its jaxpr; the mesh must be in scope."""
        return self.function.trace(*self.arguments, **self.settings)

    def argument_bytes(self, traced: jax.stages.Traced) -> int:
        """What the arguments take on each device; those that the program never reads are not handed to it."""
        jaxpr = traced.jaxpr.jaxpr
        used = {variable for equation in jaxpr.eqns for variable in equation.invars if not isinstance(variable, Constant)}
        leaves = zip(jax.tree.leaves(self.arguments), jaxpr.invars, strict=True)
        return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x, variable in leaves if variable in used)


@dataclass(frozen=True)
class Program:
    """One program on one slice."""

    config: Config
    stage: StageConfig  # trained in, where the job is `train`
    where: Slice
    job: Job = "train"
    context: int = 1_000_000  # tokens that are served, compressed
    budget: int | None = None  # decoder positions the stage reads in all; None: those of its steps

    def mesh(self, devices: Sequence[Any]) -> Mesh:
        return make_mesh(self.config.mesh, devices)

    def call(self, mesh: Mesh) -> "Call":
        """What is compiled."""
        model = self.config.model
        if self.job == "train":
            return train_call(self.config, self.stage, mesh)
        if self.job == "compress":
            return compress_call(model, mesh)
        return (prefill_call if self.job == "prefill" else decode_call)(model, mesh, self.context)

    def model_flops(self) -> Flops:
        """What the model asks for in one call on all devices, recomputation and padding excluded."""
        model, data = self.config.model, self.config.data
        head = Flops(2.0 * model.decoder.width * model.decoder.vocab)
        if self.job == "train":
            windows = self.stage.windows or data.windows
            return training_flops(model, data.positions, windows, trained_parts(self.config, self.stage)).times(data.rows)
        if self.job == "compress":
            return layer_flops(model.encoder, model.window_length).times(WINDOWS_AT_ONCE)
        latents = count_latents(self.context, model)
        if self.job == "prefill":
            return layer_flops(model.decoder, latents) + head
        c = model.decoder
        attention = 4.0 * c.layers * (latents + ROOM) * c.heads * c.head_dim
        return Flops(layer_flops(c, 1).products, attention) + head


def serve(program: Program) -> Program:
    """The same program on the mesh that serves best."""
    mesh = serving_mesh(program.config.model, program.where.chips)
    return replace(program, config=replace(program.config, mesh=mesh))


def train_call(config: Config, stage: StageConfig, mesh: Mesh) -> Call:
    """A step of a stage on a global batch. Raises ConfigError, as training does, where the mesh in scope does not divide it."""
    check_batches(config)
    room = budget(config, stage)
    row = empty_batch(1, room.positions, empty_windows(1, room.windows, room.window_length, room.window_latents))
    batch = jax.tree.map(lambda x: _shape((config.data.rows, *x.shape[1:]), x.dtype, batch_sharding(mesh)), row)
    step = jax.jit(partial(train_step, config=config, stage=stage), donate_argnums=0)
    return Call(step, (abstract_state(config, stage, mesh), batch), {})


def compress_call(config: ModelConfig, mesh: Mesh) -> Call:
    """The encoder over as many windows as `LanguageModel.compress` reads at once."""
    windows = empty_windows(1, WINDOWS_AT_ONCE, config.window_length, config.compression.latents_per_window)
    everywhere = jax.tree.map(lambda x: _shape(x.shape, x.dtype, replicated(mesh)), windows)
    return Call(pool_windows, (abstract_params(config, mesh, config.dtype), everywhere), {"config": config})


def prefill_call(config: ModelConfig, mesh: Mesh, context: int) -> Call:
    """The decoder reads the latents of a context of so many tokens, into a cache with ROOM more positions."""
    latents, where = count_latents(context, config), replicated(mesh)
    positions = _shape((1, latents), jnp.int32, where)
    vectors = _shape((1, latents, config.decoder.width), config.dtype, where)
    prompt = Prompt(positions, positions, vectors, _shape((1,), jnp.int32, where))
    return Call(prefill, (abstract_params(config, mesh, config.dtype), prompt), {"config": config, "room": ROOM})


def decode_call(config: ModelConfig, mesh: Mesh, context: int) -> Call:
    """One more token after a context of so many tokens."""
    c, where = config.decoder, replicated(mesh)
    length = cache_length(count_latents(context, config) + ROOM)
    split = NamedSharding(mesh, to_spec(CACHE_AXES))
    cached = _shape((c.layers, 1, c.kv_heads, length, c.head_dim), config.dtype, split)
    places = _shape((1, length), jnp.int32, where)
    cache = Cache(cached, cached, Places(places, places), _shape((), jnp.int32, where))
    one = _shape((1,), jnp.int32, where)
    return Call(decode_step, (abstract_params(config, mesh, config.dtype), one, one, cache), {"config": config})


def _shape(shape: tuple[int, ...], dtype: Any, where: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=where)
