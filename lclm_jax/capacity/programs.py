"""Programs whose capacity is measured: the functions that train and serve, on abstract arrays."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal as Constant
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lclm_jax.batch import empty_batch, empty_windows
from lclm_jax.capacity.jaxpr import CacheRead
from lclm_jax.config import Config, ModelConfig, StageConfig, TransformerConfig
from lclm_jax.costs.chips import Slice
from lclm_jax.costs.work import Flops, adapter_flops, layer_flops
from lclm_jax.data.loading import row_budget
from lclm_jax.data.records import count_latents
from lclm_jax.distributed.sharding import (
    batch_sharding,
    check_batches,
    make_mesh,
    platform,
    replicated,
    serving_mesh,
    splits,
    to_spec,
)
from lclm_jax.inference.compressor import WINDOWS_AT_ONCE, encode_windows
from lclm_jax.inference.generation import (
    ROOM,
    allocate_cache,
    cache_size,
    decode_step,
    positions_needed,
    read_chunk,
)
from lclm_jax.inference.prompts import PlannedChunk, Prompt, make_chunk, plan_chunks
from lclm_jax.model.attention import CACHE_AXES, Cache
from lclm_jax.model.attention.tpu import prefix_lengths
from lclm_jax.model.params import abstract_params
from lclm_jax.model.unstacked import is_unstacked, prefers_unstacked
from lclm_jax.training.state import abstract_state, step_flops
from lclm_jax.training.step import train_step

Job = Literal["train", "compress", "prefill", "decode"]


@dataclass(frozen=True)
class AbstractCall:
    """A jitted function and its abstract arguments, which carry their shardings."""

    function: Any
    arguments: tuple[Any, ...]
    static_arguments: dict[str, Any]

    def trace(self) -> jax.stages.Traced:
        """Trace the function; the mesh must be in scope."""
        return self.function.trace(*self.arguments, **self.static_arguments)

    @property
    def cache_length(self) -> int:
        """Positions of the cache among the arguments; 0 without one."""
        caches = [argument for argument in self.arguments if isinstance(argument, Cache)]
        return caches[0].length if caches else 0

    def argument_bytes(self, traced: jax.stages.Traced) -> int:
        """Return the bytes of the arguments on each device, without those that are never read."""
        jaxpr = traced.jaxpr.jaxpr
        read = {
            variable
            for equation in jaxpr.eqns
            for variable in equation.invars
            if not isinstance(variable, Constant)
        }
        leaves = zip(jax.tree.leaves(self.arguments), jaxpr.invars, strict=True)
        return sum(_shard_bytes(leaf) for leaf, variable in leaves if variable in read)


def weight_bytes(config: ModelConfig, mesh: Mesh) -> dict[str, int]:
    """Return the bytes of the parameters on each device, by component, as they are served."""
    return {
        component: sum(map(_shard_bytes, jax.tree.leaves(params)))
        for component, params in abstract_params(config, mesh, config.dtype).items()
    }


def _shard_bytes(array: jax.ShapeDtypeStruct) -> int:
    return math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize


@dataclass(frozen=True)
class CallSize:
    """Size of one of the calls that a job makes."""

    length: int  # positions that the program is compiled for
    flops: Flops  # of the model, without recomputation and padding
    cached: int = 0  # positions that are in the cache already
    filled: int = 0  # positions without padding


@dataclass(frozen=True)
class Program:
    """One job of a model on one slice."""

    config: Config
    stage: StageConfig  # to train; other jobs ignore it
    target: Slice
    job: Job = "train"
    context: int = 1_000_000  # tokens to compress, of jobs that serve
    ratio: int | None = None  # of the context; None: the model's default
    as_text: bool = False  # the decoder reads the context as text
    other_positions: int = ROOM  # of a prompt: tags around its context and a question
    windows_at_once: int = WINDOWS_AT_ONCE  # of an encoder pass
    budget: int | None = None  # decoder positions of the whole stage; None: those of its steps

    def mesh(self, devices: Sequence[Any]) -> Mesh:
        """Return the mesh of the config over these devices."""
        return make_mesh(self.config.mesh, devices)

    def call(self, mesh: Mesh, size: CallSize | None = None) -> AbstractCall:
        """Return the function to compile for a call, by default the largest."""
        model = self.config.model
        if self.job == "train":
            return train_call(self.config, self.stage, mesh)
        if self.job == "compress":
            return compress_call(model, mesh, self.windows_at_once)
        if self.job == "prefill":
            return prefill_call(model, mesh, self.prompt, size or self.largest_call)
        return decode_call(model, mesh, self.prompt)

    @property
    def latents(self) -> int:
        """Number of latents of the context."""
        return 0 if self.as_text else count_latents(self.context, self.config.model, self.ratio)

    @property
    def prompt(self) -> Prompt:
        """A prompt of the context and a question."""
        tokens = self.other_positions + (self.context if self.as_text else 0)
        return sample_prompt(self.config.model, self.latents, tokens)

    def calls(self) -> list[CallSize]:
        """Return the calls that train on a batch, read the whole context, or decode a token."""
        if self.job == "train":
            return [self._train_size()]
        if self.job == "compress":
            return self._compress_sizes()

        model = self.config.model
        chunks = plan_chunks(self.prompt, model)
        if self.job == "decode":
            return [_chunk_size(model, length=1, count=1, cached=chunks[-1].stop)]
        return [
            _chunk_size(model, chunk.length, chunk.stop - chunk.first, chunk.first)
            for chunk in chunks
        ]

    def _train_size(self) -> CallSize:
        flops = step_flops(self.config, self.stage)
        return CallSize(self.config.data.row_positions, flops)

    def _compress_sizes(self) -> list[CallSize]:
        model, at_once = self.config.model, self.windows_at_once
        flops = layer_flops(model.encoder, model.window_length).scale(at_once)
        if not model.adapter.attention:  # with attention the adapter is a program of its own
            flops += adapter_flops(model, at_once * model.compression.latents_per_window)

        windows = -(-self.context // model.compression.window)
        calls = -(-windows // at_once)
        return [CallSize(at_once * model.compression.window, flops)] * calls

    @property
    def largest_call(self) -> CallSize:
        """The longest call, and the last one of several."""
        return max(self.calls(), key=lambda size: (size.length, size.cached))

    def model_flops(self) -> Flops:
        """Return the model FLOPs of the largest call on all devices."""
        return self.largest_call.flops

    def cache_read(self, size: CallSize, length: int) -> CacheRead | None:
        """Return the part of a cache of this length that attention reads on the busiest chip.

        None without a cache. TPU kernels read one of a few prefixes. The mesh must be in scope.
        """
        if not length:
            return None
        own_length = length // splits("length")
        positions, lengths = min(size.cached, own_length), [own_length]
        if self.target.chip.kind == "tpu":
            lengths = prefix_lengths(own_length)
            positions = next(prefix for prefix in lengths if prefix >= positions)
        return CacheRead(frozenset(lengths), positions, self.config.model.decoder.layers)

    def kernel_flops(self, size: CallSize, length: int) -> float:
        """Return the attention FLOPs of a call in which kernels compute it.

        Training computes the scores again for the gradients, and once more in layers that are
        recomputed as a whole. The mesh must be in scope.
        """
        if self.job == "train":
            factor = 9 / 6 if self.config.model.remat == "full" else 7 / 6
            return size.flops.attention * factor

        cache = self.cache_read(size, length)
        if cache is None:
            return size.flops.attention
        read = cache.positions * splits("length")
        return chunk_flops(self.config.model.decoder, size.length, read).attention


def _chunk_size(model: ModelConfig, length: int, count: int, cached: int) -> CallSize:
    """Return the size of a decoder call over `count` tokens, padded to `length`."""
    head = Flops(2.0 * model.decoder.width * model.decoder.vocab)
    flops = chunk_flops(model.decoder, count, cached) + head
    return CallSize(length, flops, cached, count)


def chunk_flops(config: TransformerConfig, count: int, cached: int) -> Flops:
    """Count the forward FLOPs of `count` causal positions that follow `cached` others."""
    pairs = count * (cached + count / 2)
    attention = 4.0 * config.layers * pairs * config.heads * config.head_dim
    return Flops(count * layer_flops(config, 1).products, attention)


def with_serving_mesh(program: Program) -> Program:
    """Return the program on the mesh that `serving_mesh` chooses for its slice."""
    mesh = serving_mesh(program.config.model, program.target.chips)
    return replace(program, config=replace(program.config, mesh=mesh))


def train_call(config: Config, stage: StageConfig, mesh: Mesh) -> AbstractCall:
    """Return a training step of a stage on a global batch.

    Raises ConfigError, as training does, where the mesh in scope does not divide the batch.
    """
    check_batches(config)
    budget = row_budget(config, stage)
    windows = empty_windows(1, budget.windows, budget.window_length, budget.window_latents)
    row = empty_batch(1, budget.positions, windows)
    rows, sharding = config.data.batch_rows, batch_sharding(mesh)
    batch = jax.tree.map(lambda x: _abstract((rows, *x.shape[1:]), x.dtype, sharding), row)
    step = jax.jit(partial(train_step, config=config, stage=stage), donate_argnums=0)
    return AbstractCall(step, (abstract_state(config, stage, mesh), batch), {})


def compress_call(
    config: ModelConfig, mesh: Mesh, windows_at_once: int = WINDOWS_AT_ONCE
) -> AbstractCall:
    """Return the encoder on a pass of windows, by default as `LanguageModel.compress` reads."""
    parts = splits("windows")
    count = -(-windows_at_once // parts) * parts
    latents = config.compression.latents_per_window
    windows = empty_windows(1, count, config.window_length, latents)
    params = abstract_params(config, mesh, config.dtype)
    return AbstractCall(encode_windows, (params, _replicate(windows, mesh)), {"config": config})


def sample_prompt(config: ModelConfig, latents: int, tokens: int) -> Prompt:
    """Return a prompt of a token, the latents, and the other tokens."""
    size = config.compression.latents_per_window
    slots = np.full((1, latents + tokens), -1, np.int32)
    slots[0, 1 : 1 + latents] = np.arange(latents)
    block = np.zeros((size, config.decoder.width), config.dtype)
    length = np.array([latents + tokens], np.int32)
    blocks = [block] * max(1, -(-latents // size))  # a chunk needs at least one
    return Prompt(np.zeros_like(slots), slots, length, blocks)


def prefill_call(config: ModelConfig, mesh: Mesh, prompt: Prompt, size: CallSize) -> AbstractCall:
    """Return the decoder on one chunk of a prompt."""
    planned = next(chunk for chunk in plan_chunks(prompt, config) if chunk.first == size.cached)
    chunk = make_chunk(prompt, planned, config)
    params = abstract_weights(config, mesh)
    logits = _abstract((1, config.decoder.vocab), jnp.float32, replicated(mesh))
    cache = _on_mesh(abstract_cache(config, params, prompt), mesh)
    return AbstractCall(
        read_chunk, (params, _replicate(chunk, mesh), logits, cache), {"config": config}
    )


def decode_call(config: ModelConfig, mesh: Mesh, prompt: Prompt) -> AbstractCall:
    """Return the decoder on one more token after a prompt."""
    params = abstract_weights(config, mesh)
    scalar = _abstract((1,), jnp.int32, replicated(mesh))
    cache = _on_mesh(abstract_cache(config, params, prompt), mesh)
    return AbstractCall(decode_step, (params, scalar, scalar, cache), {"config": config})


def abstract_weights(config: ModelConfig, mesh: Mesh) -> Any:
    """Return the shapes of the parameters in the serving layout of the chips in scope."""
    params = abstract_params(config, mesh, config.dtype)
    layers = params["decoder"]["layers"]
    if not prefers_unstacked(layers, platform()):
        return params

    def without_layers(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec(*x.sharding.spec[1:])
        return _abstract(x.shape[1:], x.dtype, NamedSharding(mesh, spec))

    split = (jax.tree.map(without_layers, layers),) * config.decoder.layers
    return {**params, "decoder": {**params["decoder"], "layers": split}}


def abstract_cache(config: ModelConfig, params: Any, prompt: Prompt) -> Cache:
    """Return the shapes of the cache that `prefill` allocates for a prompt."""
    chunks: list[PlannedChunk] = plan_chunks(prompt, config)
    needed = positions_needed(chunks, ROOM)
    return jax.eval_shape(
        lambda params: allocate_cache(params, config, 1, cache_size(1, needed)), params
    )


def _on_mesh(cache: Cache, mesh: Mesh) -> Cache:
    axes = CACHE_AXES[1:] if is_unstacked(cache.keys) else CACHE_AXES
    sharding = NamedSharding(mesh, to_spec(axes))
    keys, values = jax.tree.map(
        partial(_with_sharding, sharding=sharding), (cache.keys, cache.values)
    )
    return _replicate(cache, mesh).replace(keys=keys, values=values)


def _replicate(tree: Any, mesh: Mesh) -> Any:
    """Replicate abstract arrays on every device."""
    return jax.tree.map(
        partial(_with_sharding, sharding=NamedSharding(mesh, PartitionSpec())), tree
    )


def _with_sharding(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return _abstract(x.shape, x.dtype, sharding)


def _abstract(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding)
