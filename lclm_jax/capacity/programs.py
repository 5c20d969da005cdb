"""The programs that are fitted: the very functions that train and serve, traced on shapes and
shardings alone."""

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
from lclm_jax.capacity.walk import Cached
from lclm_jax.config import Config, ModelConfig, StageConfig, TransformerConfig
from lclm_jax.costs.chips import Slice
from lclm_jax.costs.work import Flops, adapter_flops, layer_flops, training_flops
from lclm_jax.data.loading import row_budget
from lclm_jax.data.records import count_latents
from lclm_jax.distributed.sharding import (
    batch_sharding,
    check_batches,
    make_mesh,
    replicated,
    serving_mesh,
    splits,
    to_spec,
)
from lclm_jax.inference.generation import (
    ROOM,
    allocate_cache,
    decode_step,
    positions_needed,
    read_chunk,
)
from lclm_jax.inference.language_model import WINDOWS_AT_ONCE, encode_windows
from lclm_jax.inference.prompts import PlannedChunk, Prompt, make_chunk, plan_chunks
from lclm_jax.model.attention import CACHE_AXES, Cache
from lclm_jax.model.attention.tpu import prefix_lengths
from lclm_jax.model.params import abstract_params
from lclm_jax.training.state import abstract_state, trained_parts
from lclm_jax.training.step import train_step

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

    @property
    def cache_length(self) -> int:
        """Positions of the cache among the arguments; 0 without one."""
        return next((x.length for x in self.arguments if isinstance(x, Cache)), 0)

    def argument_bytes(self, traced: jax.stages.Traced) -> int:
        """What the arguments take on each device, without those that the program never reads."""
        jaxpr = traced.jaxpr.jaxpr
        read = {x for eqn in jaxpr.eqns for x in eqn.invars if not isinstance(x, Constant)}
        leaves = zip(jax.tree.leaves(self.arguments), jaxpr.invars, strict=True)
        return sum(_bytes_of_a_chip(x) for x, variable in leaves if variable in read)


def _bytes_of_a_chip(x: jax.ShapeDtypeStruct) -> int:
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


@dataclass(frozen=True)
class Turn:
    """One call of a job, of the several that a context may need."""

    length: int  # positions that the program is compiled for
    flops: Flops  # that the model asks for, recomputation and padding excluded
    cached: int = 0  # positions of the cache that it follows
    filled: int = 0  # positions that are no pads


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

    def call(self, mesh: Mesh, turn: Turn | None = None) -> Call:
        """What is compiled for a turn, by default the dearest."""
        model = self.config.model
        if self.job == "train":
            return train_call(self.config, self.stage, mesh)
        if self.job == "compress":
            return compress_call(model, mesh)
        if self.job == "prefill":
            return prefill_call(model, mesh, self.context, turn or self.dearest)
        return decode_call(model, mesh, self.context)

    def turns(self) -> list[Turn]:
        """Calls that serve the whole context; of the other jobs one."""
        model, data = self.config.model, self.config.data
        decoder, head = model.decoder, Flops(2.0 * model.decoder.width * model.decoder.vocab)
        if self.job == "train":
            windows, parts = (
                self.stage.windows or data.windows,
                trained_parts(self.config, self.stage),
            )
            row = training_flops(model, data.positions, windows, parts)
            return [Turn(data.positions, row.times(data.rows))]
        if self.job == "compress":
            windows = -(-self.context // model.compression.window)
            one = layer_flops(model.encoder, model.window_length).times(WINDOWS_AT_ONCE)
            if not model.adapter.attention:  # else it is a program of its own
                latents = WINDOWS_AT_ONCE * model.compression.latents_per_window
                one += adapter_flops(model, latents)
            length = WINDOWS_AT_ONCE * model.compression.window
            return [Turn(length, one)] * -(-windows // WINDOWS_AT_ONCE)
        spans = plan_chunks(sample_prompt(model, self.context), model)
        if self.job == "decode":
            length = spans[-1].stop
            return [Turn(1, chunk_flops(decoder, 1, length) + head, length, 1)]
        counts = [span.stop - span.first for span in spans]
        return [
            Turn(span.length, chunk_flops(decoder, count, span.first) + head, span.first, count)
            for span, count in zip(spans, counts, strict=True)
        ]

    @property
    def dearest(self) -> Turn:
        """The longest turn, the last of several."""
        return max(self.turns(), key=lambda turn: (turn.length, turn.cached))

    def model_flops(self) -> Flops:
        """What the model asks for in the dearest call on all devices."""
        return self.dearest.flops

    def cached(self, turn: Turn, length: int) -> Cached | None:
        """What attention reads of a cache of this length on the busiest chip; the mesh must be in
        scope. Kernels of TPUs read one of a few prefixes."""
        if not length:
            return None
        own = length // splits("length")
        used, lengths = min(turn.cached, own), [own]
        if self.where.chip.kind == "tpu":
            lengths = prefix_lengths(own)
            used = next(length for length in lengths if length >= used)
        return Cached(frozenset(lengths), used, self.config.model.decoder.layers)

    def kernel_flops(self, turn: Turn, length: int) -> float:
        """FLOPs of attention in a turn where kernels compute it; the mesh must be in scope.

        Training makes the scores again: once for the gradients, and once in a layer that is read
        again as a whole.
        """
        if self.job == "train":
            return turn.flops.attention * (9 / 6 if self.config.model.remat == "full" else 7 / 6)
        if not (cached := self.cached(turn, length)):
            return turn.flops.attention
        read = cached.positions * splits("length")
        return chunk_flops(self.config.model.decoder, turn.length, read).attention


def chunk_flops(config: TransformerConfig, count: int, cached: int) -> Flops:
    """One forward pass over `count` causal positions that follow `cached` others."""
    pairs = count * (cached + count / 2)
    attention = 4.0 * config.layers * pairs * config.heads * config.head_dim
    return Flops(count * layer_flops(config, 1).products, attention)


def serve(program: Program) -> Program:
    """The same program on the mesh that serves best."""
    mesh = serving_mesh(program.config.model, program.where.chips)
    return replace(program, config=replace(program.config, mesh=mesh))


def train_call(config: Config, stage: StageConfig, mesh: Mesh) -> Call:
    """A step of a stage on a global batch.

    Raises ConfigError, as training does, where the mesh in scope does not divide it.
    """
    check_batches(config)
    room = row_budget(config, stage)
    windows = empty_windows(1, room.windows, room.window_length, room.window_latents)
    rows, where = config.data.rows, batch_sharding(mesh)
    row = empty_batch(1, room.positions, windows)
    batch = jax.tree.map(lambda x: _shape((rows, *x.shape[1:]), x.dtype, where), row)
    step = jax.jit(partial(train_step, config=config, stage=stage), donate_argnums=0)
    return Call(step, (abstract_state(config, stage, mesh), batch), {})


def compress_call(config: ModelConfig, mesh: Mesh) -> Call:
    """The encoder over as many windows as `LanguageModel.compress` reads at once."""
    parts = splits("windows")
    count = -(-WINDOWS_AT_ONCE // parts) * parts
    latents = config.compression.latents_per_window
    windows = empty_windows(1, count, config.window_length, latents)
    params = abstract_params(config, mesh, config.dtype)
    return Call(encode_windows, (params, _everywhere(windows, mesh)), {"config": config})


def sample_prompt(config: ModelConfig, context: int) -> Prompt:
    """The latents of a context of so many tokens between tags, and a question: with the tags, ROOM
    positions more."""
    size = config.compression.latents_per_window
    latents = count_latents(context, config)
    slots = np.full((1, latents + ROOM), -1, np.int32)
    slots[0, 1 : 1 + latents] = np.arange(latents)
    block = np.zeros((size, config.decoder.width), config.dtype)
    length = np.array([latents + ROOM], np.int32)
    return Prompt(np.zeros_like(slots), slots, length, [block] * -(-latents // size))


def prefill_call(config: ModelConfig, mesh: Mesh, context: int, turn: Turn) -> Call:
    """The decoder reads one chunk of a `sample_prompt`."""
    prompt = sample_prompt(config, context)
    span = next(span for span in plan_chunks(prompt, config) if span.first == turn.cached)
    chunk = make_chunk(prompt, span, config)
    params = abstract_params(config, mesh, config.dtype)
    logits = _shape((1, config.decoder.vocab), jnp.float32, replicated(mesh))
    cache = _on_mesh(abstract_cache(config, params, context), mesh)
    return Call(read_chunk, (params, _everywhere(chunk, mesh), logits, cache), {"config": config})


def decode_call(config: ModelConfig, mesh: Mesh, context: int) -> Call:
    """One more token after a `sample_prompt`."""
    params = abstract_params(config, mesh, config.dtype)
    one = _shape((1,), jnp.int32, replicated(mesh))
    cache = _on_mesh(abstract_cache(config, params, context), mesh)
    return Call(decode_step, (params, one, one, cache), {"config": config})


def abstract_cache(config: ModelConfig, params: Any, context: int) -> Cache:
    """The shapes of the cache that `generate.prefill` allocates for a `sample_prompt`."""
    spans: list[PlannedChunk] = plan_chunks(sample_prompt(config, context), config)
    needed = positions_needed(spans, ROOM)
    return jax.eval_shape(lambda params: allocate_cache(params, config, 1, needed), params)


def _on_mesh(cache: Cache, mesh: Mesh) -> Cache:
    split = partial(_on, where=NamedSharding(mesh, to_spec(CACHE_AXES)))
    rest = _everywhere(cache, mesh)
    return rest.replace(keys=split(cache.keys), values=split(cache.values))


def _everywhere(tree: Any, mesh: Mesh) -> Any:
    """Shapes of arrays that every device has whole."""
    return jax.tree.map(partial(_on, where=NamedSharding(mesh, PartitionSpec())), tree)


def _on(x: Any, where: NamedSharding) -> jax.ShapeDtypeStruct:
    return _shape(x.shape, x.dtype, where)


def _shape(shape: tuple[int, ...], dtype: Any, where: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=where)
