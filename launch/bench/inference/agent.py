"""Rounds of an agent with replies from a script: what it reads anew in each of them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from launch.bench.accelerator.record import Record, Result
from launch.bench.inference.inputs import make_model, make_text
from launch.bench.inference.plan import Plan
from launch.bench.inference.sizes import Sizes
from lclm_jax.evaluation.timing import middle, repeat, timed
from lclm_jax.inference.agent import Agent, AgentAnswer
from lclm_jax.inference.answers import Answer
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.inference.latents import Latents
from lclm_jax.inference.prompts import Prompt

REPEATS = 3
NEW, ALL = "only what is new", "everything again"


@dataclass(frozen=True)
class Rounds(Result):
    """All replies to one question: medians of their seconds. A reply is one decoded token."""

    replies: int  # requests for chunks, and the answer
    encoder_seconds: float  # of the document, for all replies
    reading_seconds: float
    seconds: float  # both
    positions: list[int]  # of the prompt of each reply
    positions_read: list[int]


class ScriptedModel(LanguageModel):
    """A model that reads its prompts, decodes one token, and replies from a script."""

    replies: Iterator[str] = iter(())

    def answer(self, prompt: Prompt, *_, **__) -> list[Answer]:
        """Read a prompt and return the next reply."""
        (answer,) = super().answer(prompt, 1)
        return [replace(answer, text=next(self.replies))]


def run(plan: Plan, record: Record):
    """Measure the rounds with kept caches, and with everything encoded and read for each reply."""
    known, sizes = make_model(plan.sizes.model), plan.sizes
    model = ScriptedModel(known.config, known.params, known.tokenizer)
    text = make_text(model.tokenizer, sizes.document)
    record.measure(NEW, partial(measure, model, text, sizes, encodings=1))
    model.prefixes.budget = 0
    record.measure(ALL, partial(measure, model, text, sizes, encodings=sizes.rounds + 1))


def measure(model: ScriptedModel, text: str, sizes: Sizes, encodings: int) -> Rounds:
    """Ask a question about a document that is encoded so many times."""
    latents = model.compress(text).block_until_ready()
    encoding = repeat(lambda: model.compress(text).block_until_ready(), least=REPEATS, most=REPEATS)
    ask(model, latents, sizes)
    answers, seconds = zip(
        *(timed(lambda: ask(model, latents, sizes)) for _ in range(REPEATS)), strict=True
    )
    rounds = answers[0].rounds
    encoder, reading = encodings * middle(encoding), middle(list(seconds))
    return Rounds(
        len(rounds),
        encoder,
        reading,
        encoder + reading,
        [step.positions for step in rounds],
        [step.positions_read for step in rounds],
    )


def ask(model: ScriptedModel, latents: Latents, sizes: Sizes) -> AgentAnswer:
    """Answer a question after a chunk in each round; no cache is kept from another question."""
    model.prefixes.clear()
    requests = [f"EXPAND: {number + 1}" for number in range(sizes.rounds)]
    model.replies = iter([*requests, "ANSWER: nothing"])
    agent = Agent(model, latents, chunk_tokens=sizes.chunk, max_rounds=sizes.rounds)
    return agent.ask("What does it return?")
