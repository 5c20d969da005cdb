"""The programs that are fitted: the very functions that train and serve, traced on shapes and shardings alone."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lclm_jax.config import Config, ModelConfig, StageConfig
from lclm_jax.data.batch import empty_batch, empty_windows
from lclm_jax.data.spans import count_latents
from lclm_jax.data.streams import budget
from lclm_jax.generate import Prompt, decode_step, prefill
from lclm_jax.language_model import WINDOWS_AT_ONCE, pool_windows
from lclm_jax.model.attention import CACHE_AXES, Cache
from lclm_jax.model.masks import Places
from lclm_jax.sharding import batch_sharding, to_spec
from lclm_jax.state import abstract_params, abstract_state
from lclm_jax.train import train_step

ROOM = 1024  # positions of a cache for what is asked and answered about a context


def trace_train(config: Config, stage: StageConfig, mesh: Mesh) -> jax.stages.Traced:
    """A step of a stage on a global batch."""
    room = budget(config, stage)
    row = empty_batch(1, room.positions, empty_windows(1, room.windows, room.window_length, room.window_latents))
    batch = jax.tree.map(lambda x: _shape((config.data.rows, *x.shape[1:]), x.dtype, batch_sharding(mesh)), row)
    step = jax.jit(partial(train_step, config=config, stage=stage), donate_argnums=0)
    return step.trace(abstract_state(config, stage, mesh), batch)


def trace_compress(config: ModelConfig, mesh: Mesh) -> jax.stages.Traced:
    """The encoder over as many windows as `LanguageModel.compress` reads at once."""
    windows = empty_windows(1, WINDOWS_AT_ONCE, config.window_length, config.compression.latents_per_window)
    everywhere = jax.tree.map(lambda x: _shape(x.shape, x.dtype, _replicated(mesh)), windows)
    return pool_windows.trace(abstract_params(config, mesh, config.dtype), everywhere, config=config)


def trace_prefill(config: ModelConfig, mesh: Mesh, context: int) -> jax.stages.Traced:
    """The decoder reads the latents of a context of so many tokens, into a cache with ROOM more positions."""
    latents, where = count_latents(context, config), _replicated(mesh)
    positions = _shape((1, latents), jnp.int32, where)
    vectors = _shape((1, latents, config.decoder.width), config.dtype, where)
    prompt = Prompt(positions, positions, vectors, _shape((1,), jnp.int32, where))
    return prefill.trace(abstract_params(config, mesh, config.dtype), prompt, config=config, room=ROOM)


def trace_decode(config: ModelConfig, mesh: Mesh, context: int) -> jax.stages.Traced:
    """One more token after a context of so many tokens."""
    c, length, where = config.decoder, count_latents(context, config) + ROOM, _replicated(mesh)
    split = NamedSharding(mesh, to_spec(CACHE_AXES))
    cached = _shape((c.layers, 1, c.kv_heads, length, c.head_dim), config.dtype, split)
    places = _shape((1, length), jnp.int32, where)
    cache = Cache(cached, cached, Places(places, places), _shape((), jnp.int32, where))
    one = _shape((1,), jnp.int32, where)
    return decode_step.trace(abstract_params(config, mesh, config.dtype), one, one, cache, config=config)


def _shape(shape: tuple[int, ...], dtype: Any, where: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=where)


def _replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())
