"""Speed and memory of compressing long texts, on devices and into a store."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from launch.bench.accelerator.record import Record, Result
from launch.bench.accelerator.timing import timed
from launch.bench.inference.inputs import make_model, make_text, new_store
from launch.bench.inference.memory import read_peak, start_peak
from launch.bench.inference.plan import Plan
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.inference.latents import Latents

Compress = Callable[[str], Latents]


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
    run(plan, record, model, lambda text: model.compress(text).block_until_ready())


def run_store(plan: Plan, record: Record):
    """Measure `Store.add_text`, each text in a store of its own."""
    model = make_model(plan.sizes.model)

    def compress(text: str) -> Latents:
        # A store that knew a shorter text would not encode its windows again.
        with new_store(plan.directory, model) as store:
            return store.add_text("text", text)

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
    latents, seconds = timed(lambda: compress(text))
    itemsize = model.weights["decoder"]["table"].dtype.itemsize
    size = len(latents) * latents.width * itemsize
    return LongText(latents.tokens, seconds, latents.tokens / seconds, resident, read_peak(), size)
