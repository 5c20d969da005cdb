"""Many questions about one document: encoded for each, kept in a store, and with kept caches."""

from dataclasses import dataclass
from functools import partial

from launch.bench.accelerator.record import Record, Result
from launch.bench.inference.inputs import exactly, make_model, make_text, new_store, question
from launch.bench.inference.plan import Plan
from launch.bench.inference.sizes import Sizes
from lclm_jax.evaluation.timing import timed
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.inference.latents import Latents

ENCODED, STORED, CACHED = "encoded for each", "from a store", "from a store, with kept caches"


@dataclass(frozen=True)
class Questions(Result):
    """Seconds of all questions, scaled from those that were asked."""

    questions: int
    asked: int
    encoder_seconds: float
    answer_seconds: float  # reading the prompt and decoding
    seconds: float  # both
    positions: int  # of all prompts: tokens and latents
    positions_read: int  # positions that no kept cache had


def run(plan: Plan, record: Record):
    """Measure the three ways to ask."""
    if {ENCODED, STORED, CACHED} <= set(record.measurements):
        return
    model = make_model(plan.sizes.model)
    budget = model.prefixes.budget
    text = make_text(model.tokenizer, plan.sizes.document)
    record.measure(ENCODED, partial(measure_encoding, model, text, plan.sizes))
    record.measure(STORED, partial(measure_store, plan, model, text, 0))
    record.measure(CACHED, partial(measure_store, plan, model, text, budget))


def ask(
    model: LanguageModel, latents: Latents, number: int, sizes: Sizes
) -> tuple[float, int, int]:
    """Return the seconds of an answer, and the positions of its prompt: all, and those read."""
    sampling = exactly(sizes.answer)
    (answer,), seconds = timed(
        lambda: model.generate_batch([[latents, question(number)]], sizes.answer, sampling)
    )
    return seconds, answer.positions, answer.positions_read


def warm_up(model: LanguageModel, latents: Latents, budget: int, sizes: Sizes):
    """Set the budget of kept caches, and compile what questions need, also those after the first.

    No cache is kept of it.
    """
    model.prefixes.budget = budget
    for number in range(2):
        ask(model, latents, number, sizes)
    model.prefixes.clear()


def measure_encoding(model: LanguageModel, text: str, sizes: Sizes) -> Questions:
    """Compress the document for every question, of which a part is asked."""
    warm_up(model, model.compress(text), 0, sizes)
    encoding, answers = 0.0, []
    for number in range(sizes.encoded_questions):
        latents, seconds = timed(lambda: model.compress(text).block_until_ready())
        encoding += seconds
        answers.append(ask(model, latents, number, sizes))
    return total(encoding * sizes.questions / len(answers), answers, sizes)


def measure_store(plan: Plan, model: LanguageModel, text: str, budget: int) -> Questions:
    """Compress the document once, and ask every question."""
    with new_store(plan.directory, model) as store:
        other = store.add_text("another document", f"!{text}")  # it shares no window
        warm_up(model, other, budget, plan.sizes)
        latents, encoding = timed(lambda: store.add_text("document", text))
        answers = [ask(model, latents, i, plan.sizes) for i in range(plan.sizes.questions)]
    return total(encoding, answers, plan.sizes)


def total(encoding: float, answers: list[tuple[float, int, int]], sizes: Sizes) -> Questions:
    """Return the sums over all questions."""
    scale = sizes.questions / len(answers)
    seconds, positions, read = (scale * sum(values) for values in zip(*answers, strict=True))
    return Questions(
        sizes.questions,
        len(answers),
        encoding,
        seconds,
        encoding + seconds,
        round(positions),
        round(read),
    )
