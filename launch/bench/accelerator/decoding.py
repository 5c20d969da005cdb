"""Decoding speed after a compressed context, in tokens and in bytes read per second."""

import time
from dataclasses import dataclass
from functools import partial

import jax

from launch.bench.accelerator.first_token import make_model
from launch.bench.accelerator.inference import begin_decoding, decode_more, state_for_batch
from launch.bench.accelerator.record import Record, Result
from launch.bench.accelerator.sizes import Sizes
from lclm_jax.costs.work import cache_bytes
from lclm_jax.evaluation.first_token import PromptState, compress, prefill, random_tokens
from lclm_jax.evaluation.memory import peak_memory
from lclm_jax.evaluation.timing import middle
from lclm_jax.inference.generation import DECODE_STEPS
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.model.lclm import output_table

TIMED_BLOCKS = 4  # of DECODE_STEPS tokens


@dataclass(frozen=True)
class Decoding(Result):
    """Speed of a decoding step of a batch: medians over blocks of steps after the first."""

    rows: int
    positions: int  # average per row of the cache
    seconds_per_step: float
    tokens_per_second: float  # of all rows
    weight_bytes: int  # read by a step
    cache_bytes: int  # read by a step, of all rows
    needed_bytes_per_second: float
    repeats: int
    peak_bytes: int | None  # of the process, which may have read longer texts before


def run(sizes: Sizes, record: Record):
    """Measure decoding at every batch size."""
    model = make_model(sizes.model)
    missing = [rows for rows in sizes.batches if name_of(rows) not in record.measurements]
    if not missing:
        return
    latents = compress(model, random_tokens(model.config, sizes.middle))
    question = random_tokens(model.config, sizes.question, seed=1)
    room = (TIMED_BLOCKS + 1) * DECODE_STEPS
    state = prefill(model, latents, question, room)
    read = len(latents) + 2 + len(question)
    for rows in sizes.batches:
        record.measure(name_of(rows), partial(measure, model, state, rows, read))


def name_of(rows: int) -> str:
    return f"{rows} rows"


def measure(model: LanguageModel, state: PromptState, rows: int, read: int) -> Decoding:
    config = model.config.decoder
    decoding = begin_decoding(model, state_for_batch(state, rows))
    decoding, _ = decode_more(model, decoding)  # compiles
    rounds = []
    for _ in range(TIMED_BLOCKS):
        started = time.perf_counter()
        decoding, count = decode_more(model, decoding)
        rounds.append((time.perf_counter() - started) / count)
    seconds = middle(rounds)
    positions = read + DECODE_STEPS + TIMED_BLOCKS * DECODE_STEPS // 2
    weights = read_weights(model)
    itemsize = output_table(model.weights, model.config).dtype.itemsize
    cached = rows * cache_bytes(config, positions, itemsize)
    return Decoding(
        rows,
        positions,
        seconds,
        rows / seconds,
        weights,
        cached,
        (weights + cached) / seconds,
        len(rounds),
        peak_memory(),
    )


def read_weights(model: LanguageModel) -> int:
    """Return the weight bytes that a step reads: layers and output table.

    It reads only a few rows of the input table, which do not count.
    """
    layers = sum(x.nbytes for x in jax.tree.leaves(model.weights["decoder"]["layers"]))
    return layers + output_table(model.weights, model.config).nbytes
