"""Time to the first token of the answer to a long text, and peak memory."""

import time
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax

from launch.bench.accelerator.record import Record, Result, read_results
from launch.bench.accelerator.rows import small_tokenizer
from launch.bench.accelerator.sizes import Sizes
from launch.bench.accelerator.weights import random_params
from lclm_jax.config import ModelConfig
from lclm_jax.costs.work import compressed_cost, uncompressed_cost
from lclm_jax.distributed.sharding import one_device
from lclm_jax.evaluation.first_token import compress, prefill, random_tokens
from lclm_jax.evaluation.memory import peak_memory, ran_out_of_memory
from lclm_jax.evaluation.timing import middle, repeat, seconds_of
from lclm_jax.inference.language_model import LanguageModel, serving_params

# Repetitions of a call stop after this time, but there are at least two.
REPETITION_SECONDS = 1.5
COMPILATION_SECONDS = 5.0
MIN_RUNS = 4  # per length


@dataclass(frozen=True)
class FirstToken(Result):
    """Medians of several runs after two warm-ups, with compression."""

    tokens: int
    ratio: int
    latents: int
    compress_seconds: float
    prefill_seconds: float
    seconds: float  # compress and prefill
    # The first run less the median: compilation, loading, autotuning.
    compile_seconds: float
    repeats: int
    peak_bytes: int | None  # of the process; None if it read a longer text before
    flops: float  # needed by the model


@dataclass(frozen=True)
class PlainFirstToken(Result):
    """Medians without compression; `seconds` is None if memory ran out."""

    tokens: int
    out_of_memory: bool
    seconds: float | None = None
    compile_seconds: float | None = None
    repeats: int = 0
    peak_bytes: int | None = None
    flops: float = 0.0
    message: str = ""


@dataclass(frozen=True)
class Warm(Result):
    """Seconds to load the programs of one length in a new process from the cache on disk."""

    tokens: int
    seconds: float  # the first run less the median of the other process
    first_run_seconds: float


@cache
def make_model(config: ModelConfig) -> LanguageModel:
    """Return the model with random weights in its dtype, made once per process."""
    mesh = one_device()
    with jax.set_mesh(mesh):
        weights = serving_params(random_params(config, config.dtype, mesh), config, donate=True)
    return LanguageModel(config, weights, small_tokenizer(), mesh)


def name_of(tokens: int, ratio: int) -> str:
    return f"{tokens} tokens at {ratio}x"


def needed(before: dict[str, Any] | None, flops: float, sizes: Sizes) -> float:
    """Return the seconds that must be left to start another length.

    They cover compilation and MIN_RUNS runs at the speed of the length before.
    """
    if before is None or not before["seconds"] or sizes.tiny:
        return 1.0
    return COMPILATION_SECONDS + MIN_RUNS * before["seconds"] * flops / before["flops"]


def run_compressed(sizes: Sizes, record: Record):
    """Measure every length with compression, the most important first."""
    model = make_model(sizes.model)
    own, before, longest = sizes.model.compression.ratio, None, 0
    for tokens in (*sizes.contexts, *sizes.more_contexts):
        known = name_of(tokens, own) in record.measurements
        call = partial(measure_compressed, model, tokens, sizes, tokens > longest)
        needs = needed(before, compressed_cost(tokens, sizes.model).flops, sizes)
        result = record.measure(name_of(tokens, own), call, needs)
        if result is not None and not known:
            longest = max(longest, tokens)
        before = result or before
    for tokens in sizes.other_contexts:
        for ratio in sizes.other_ratios:
            compression = replace(sizes.model.compression, ratio=ratio)
            config = replace(sizes.model, compression=compression)
            other = LanguageModel(config, model.weights, model.tokenizer)
            call = partial(measure_compressed, other, tokens, sizes, False)
            needs = needed(before, compressed_cost(tokens, config).flops, sizes)
            record.measure(name_of(tokens, ratio), call, needs)


def measure_compressed(
    model: LanguageModel, tokens: int, sizes: Sizes, longest: bool
) -> FirstToken:
    """Measure one length; peak memory counts only if it is the longest so far."""
    config = model.config
    text = random_tokens(config, tokens)
    asked = random_tokens(config, sizes.question, seed=1)
    started = time.perf_counter()
    latents = compress(model, text)
    prefill(model, latents, asked, sizes.room)
    first = time.perf_counter() - started
    # The second run of a program is slow as well, because XLA records its CUDA graphs.
    prefill(model, compress(model, text), asked, sizes.room)
    compressing = repeat(lambda: compress(model, text), REPETITION_SECONDS)
    prefilling = repeat(lambda: prefill(model, latents, asked, sizes.room), REPETITION_SECONDS)
    compress_seconds, prefill_seconds = middle(compressing), middle(prefilling)
    total = compress_seconds + prefill_seconds
    return FirstToken(
        tokens,
        config.compression.ratio,
        len(latents),
        compress_seconds,
        prefill_seconds,
        total,
        max(0.0, first - total),
        min(len(compressing), len(prefilling)),
        peak_memory() if longest else None,
        compressed_cost(tokens, config).flops,
    )


def run_uncompressed(sizes: Sizes, record: Record):
    """Measure every length without compression until memory or time runs out."""
    model = make_model(sizes.model)
    result = None
    for tokens in sizes.plain:
        call = partial(measure_uncompressed, model, tokens, sizes.room)
        needs = needed(result, uncompressed_cost(tokens, sizes.model).flops, sizes)
        result = record.measure(f"{tokens} tokens as text", call, needs)
        if result is None or result["out_of_memory"]:
            break


def measure_uncompressed(model: LanguageModel, tokens: int, room: int) -> PlainFirstToken:
    text = random_tokens(model.config, tokens)

    def read() -> object:
        return prefill(model, None, text, room)

    try:
        first = seconds_of(read)
        spent = repeat(read, REPETITION_SECONDS, least=1)
    except jax.errors.JaxRuntimeError as error:
        if not ran_out_of_memory(error):
            raise
        return PlainFirstToken(tokens, out_of_memory=True, message=str(error)[:300])
    return PlainFirstToken(
        tokens,
        False,
        middle(spent),
        max(0.0, first - middle(spent)),
        len(spent),
        peak_memory(),
        uncompressed_cost(tokens, model.config).flops,
    )


def run_warm(sizes: Sizes, record: Record, results: Path):
    """Measure again, with programs from the cache, the lengths at the model's own ratio."""
    model = make_model(sizes.model)
    measured = read_results(results / "first_token.compressed.json")["measurements"]
    for tokens in (*sizes.contexts, *sizes.more_contexts):
        cold = measured.get(name_of(tokens, sizes.model.compression.ratio))
        if cold is None:
            record.skip(
                f"{tokens} tokens",
                "needs the measurement of its first token; run the section serving",
            )
        else:
            call = partial(measure_warm, model, tokens, sizes, cold["seconds"])
            needs = 2 * cold["seconds"] + 2
            record.measure(f"{tokens} tokens", call, needs)


def measure_warm(model: LanguageModel, tokens: int, sizes: Sizes, median: float) -> Warm:
    text = random_tokens(model.config, tokens)
    asked = random_tokens(model.config, sizes.question, seed=1)
    first = seconds_of(lambda: prefill(model, compress(model, text), asked, sizes.room))
    return Warm(tokens, max(0.0, first - median), first)
