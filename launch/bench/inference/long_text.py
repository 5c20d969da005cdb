"""Speed and memory of compressing long texts, on devices and into a store."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from launch.bench.accelerator.record import Record, Result
from launch.bench.inference.inputs import make_model, make_text, new_store
from launch.bench.inference.plan import Plan
from lclm_jax.evaluation.memory import read_peak, start_peak
from lclm_jax.evaluation.timing import timed
from lclm_jax.inference.language_model import LanguageModel

Compress = Callable[[str], tuple[int, int]]  # of a text, into the numbers of tokens and latents


@dataclass(frozen=True)
class LongText(Result):
    """One run for each length, after a short text that compiles."""

    tokens: int
    seconds: float  # of tokens, encoder and, for a store, writing and removing it
    tokens_per_second: float
    resident_bytes: int | None  # of the process, before
    peak_bytes: int | None  # of the device, or of the process during the run
    latent_bytes: int  # of the vectors


def run_compress(plan: Plan, record: Record):
    """Measure `LanguageModel.compress`."""
    model = make_model(plan.sizes.model)

    def compress(text: str) -> tuple[int, int]:
        latents = model.compress(text).block_until_ready()
        return latents.tokens, len(latents)

    run(plan, record, model, compress)


def run_store(plan: Plan, record: Record):
    """Measure `Store.add_text`, each text in a store of its own."""
    model = make_model(plan.sizes.model)

    def compress(text: str) -> tuple[int, int]:
        # A store that knew a shorter text would not encode its windows again.
        with new_store(plan.directory, model) as store:
            entry = store.add_text("text", text).entry
        return entry.tokens, entry.latents

    run(plan, record, model, compress)


def run(plan: Plan, record: Record, model: LanguageModel, compress: Compress):
    """Measure ascending lengths."""
    if all(name_of(tokens) in record.measurements for tokens in plan.sizes.long_texts):
        return
    compress(make_text(model.tokenizer, plan.sizes.document))  # compiles
    for tokens in plan.sizes.long_texts:
        record.measure(name_of(tokens), partial(measure, model, compress, tokens))


def name_of(tokens: int) -> str:
    return f"{tokens} tokens"


def measure(model: LanguageModel, compress: Compress, tokens: int) -> LongText:
    """Measure one text."""
    text = make_text(model.tokenizer, tokens)
    resident = start_peak()
    (count, latents), seconds = timed(lambda: compress(text))
    itemsize = model.weights["decoder"]["table"].dtype.itemsize
    size = latents * model.config.decoder.width * itemsize
    return LongText(count, seconds, count / seconds, resident, read_peak(), size)
