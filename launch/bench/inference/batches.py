"""Answers to several prompts at once, relative to one."""

from dataclasses import dataclass
from functools import partial

from launch.bench.accelerator.record import Record, Result
from launch.bench.inference.inputs import exactly, make_model, question
from launch.bench.inference.plan import Plan
from launch.bench.inference.sizes import Sizes
from lclm_jax.evaluation.first_token import random_tokens
from lclm_jax.evaluation.timing import middle, repeat
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.inference.latents import Latents


@dataclass(frozen=True)
class Batch(Result):
    """Medians, without compression of the contexts."""

    prompts: int
    seconds: float  # reading and decoding
    answers_per_second: float
    tokens_per_second: float
    repeats: int


def run(plan: Plan, record: Record):
    """Measure every number of prompts, each with a compressed context of its own."""
    sizes, model = plan.sizes, make_model(plan.sizes.model)
    model.prefixes.budget = 0
    missing = [n for n in sizes.batches if name_of(n) not in record.measurements]
    contexts = [
        model.compress_tokens(random_tokens(model.config, sizes.batch_context, seed))
        for seed in range(max(missing, default=0))
    ]
    for count in sizes.batches:
        record.measure(name_of(count), partial(measure, model, contexts[:count], sizes))


def name_of(count: int) -> str:
    return f"{count} prompts"


def measure(model: LanguageModel, contexts: list[Latents], sizes: Sizes) -> Batch:
    """Measure answers of a fixed length to one question about each context."""
    prompts = [[latents, question(number)] for number, latents in enumerate(contexts)]
    sampling = exactly(sizes.answer)

    def answer() -> object:
        return model.generate_batch(prompts, sizes.answer, sampling)

    answer()  # compiles
    spent = repeat(answer)
    seconds, count = middle(spent), len(prompts)
    tokens = count * sizes.answer
    return Batch(count, seconds, count / seconds, tokens / seconds, len(spent))
