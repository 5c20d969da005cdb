"""Seconds to the first token, speed of decoding and peak memory, by the length of the context."""

from dataclasses import dataclass, replace
from functools import partial

from launch.bench.accelerator.inference import decode
from launch.bench.accelerator.record import Record, Result
from launch.bench.inference.inputs import make_model
from launch.bench.inference.plan import Plan
from launch.bench.inference.sizes import Sizes
from lclm_jax.config import ModelConfig
from lclm_jax.costs.work import compressed_cost, uncompressed_cost
from lclm_jax.evaluation.first_token import random_tokens, time_first_token
from lclm_jax.evaluation.memory import read_peak, start_peak
from lclm_jax.evaluation.timing import middle, timed
from lclm_jax.evaluation.views import View
from lclm_jax.inference.language_model import LanguageModel

# Rounds stop after this time, but there are at least two after the first, which compiles.
ROUNDS_SECONDS, MIN_ROUNDS, MAX_ROUNDS = 10.0, 2, 5
LONG_SECONDS = 100.0  # a first round that takes longer is the only one: compiling takes few of them


@dataclass(frozen=True)
class FirstToken(Result):
    """Medians of several rounds after one that compiles, or one long round."""

    tokens: int
    ratio: int | None  # None: read as text
    compress_seconds: float
    prefill_seconds: float
    seconds: float  # compress and prefill
    decode_tokens_per_second: float
    rounds: int
    resident_bytes: int | None  # of the process, before the rounds
    peak_bytes: int | None  # of the device, or of the process during the rounds
    flops: float  # needed by the model


@dataclass(frozen=True)
class Reading:
    """A way to read contexts: compressed at a ratio, or (None) as text."""

    model: LanguageModel
    ratio: int | None

    def flops(self, tokens: int) -> float:
        """Return the FLOPs of reading a context."""
        config = self.model.config
        if self.ratio is None:
            return uncompressed_cost(tokens, config).flops
        compression = replace(config.compression, ratio=self.ratio)
        return compressed_cost(tokens, replace(config, compression=compression)).flops

    def round(self, tokens: int, sizes: Sizes) -> tuple[float, float, float]:
        """Return the seconds of compression, of the rest of the prompt, and of the answer."""
        model = self.model
        view = View("latents", self.ratio) if self.ratio else View("text")
        context = random_tokens(model.config, tokens)
        question = random_tokens(model.config, sizes.question, seed=1)
        first = time_first_token(model, view, context, question, sizes.answer)
        _, decoding = timed(lambda: decode(model, first.state, sizes.answer))
        return first.compress_seconds, first.prefill_seconds, decoding


def run_ratio(plan: Plan, record: Record, ratio: int):
    """Measure contexts at a ratio, in a model of several."""
    run(plan, record, plan.sizes.several_ratios, ratio)


def run_only_ratio(plan: Plan, record: Record):
    """Measure contexts in a model of one ratio."""
    run(plan, record, plan.sizes.model, plan.sizes.model.compression.ratio)


def run_text(plan: Plan, record: Record):
    """Measure contexts that are read as text."""
    run(plan, record, plan.sizes.model, None)


def run(plan: Plan, record: Record, config: ModelConfig, ratio: int | None):
    """Measure ascending contexts, up to the first that would take too long."""
    reading, before = Reading(make_model(config), ratio), None
    for tokens in plan.sizes.contexts:
        name, flops = f"{tokens} tokens", reading.flops(tokens)
        seconds = before["seconds"] * flops / before["flops"] if before else 0.0
        if plan.is_too_long(record, name, seconds):
            break
        before = record.measure(name, partial(measure, reading, tokens, plan.sizes)) or before


def measure(reading: Reading, tokens: int, sizes: Sizes) -> FirstToken:
    """Measure rounds of reading a context and decoding an answer."""
    resident, rounds = start_peak(), [reading.round(tokens, sizes)]
    if sum(rounds[0]) < LONG_SECONDS:
        resident, rounds = start_peak(), repeat_round(reading, tokens, sizes)
    compressing, prefilling, decoding = (middle(list(x)) for x in zip(*rounds, strict=True))
    return FirstToken(
        tokens,
        reading.ratio,
        compressing,
        prefilling,
        compressing + prefilling,
        sizes.answer / decoding,
        len(rounds),
        resident,
        read_peak(),
        reading.flops(tokens),
    )


def repeat_round(reading: Reading, tokens: int, sizes: Sizes) -> list[tuple[float, float, float]]:
    """Return the times of MIN_ROUNDS to MAX_ROUNDS rounds, of ROUNDS_SECONDS if possible."""
    rounds: list[tuple[float, float, float]] = []
    while len(rounds) < MIN_ROUNDS or (
        len(rounds) < MAX_ROUNDS and sum(map(sum, rounds)) < ROUNDS_SECONDS
    ):
        rounds.append(reading.round(tokens, sizes))
    return rounds
