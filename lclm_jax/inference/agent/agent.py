"""The agent: reads chunks as latents, expands those it needs word for word, and answers."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from lclm_jax.config import ConfigError
from lclm_jax.config.settings import Count, Size, parse
from lclm_jax.data.chat import Message, Reasoning
from lclm_jax.data.rows.chat_rows import read_chat_row
from lclm_jax.data.rows.expand_chat import CHUNK_TOKENS, MAX_ROUNDS
from lclm_jax.data.rows.row_errors import RowError
from lclm_jax.inference.agent.chunks import Chunk, Source, number_chunks
from lclm_jax.inference.agent.forms import FORMS, Request
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.inference.latents import Latents
from lclm_jax.inference.sampling import GREEDY, Sampling

MAX_NOTED, MAX_NOTED_DIGITS = 8, 24  # numbers of chunks that a note names, and their length
DEFAULT_BUDGET = 8192  # tokens of all expanded chunks together


@dataclass(frozen=True)
class Round:
    """One reply of the model, and the chunks and notes that follow it.

    Attributes:
        reply: its text, with its reasons.
        expanded: chunks that follow word for word.
        notes: sentences about chunks that do not exist, were shown before, or exceed the budget.
        positions: length of the prompt, tokens and latents.
        positions_read: how many of them were new.
    """

    reply: str
    expanded: tuple[Chunk, ...]
    notes: tuple[str, ...]
    positions: int
    positions_read: int


@dataclass(frozen=True)
class AgentAnswer:
    """The answer to a question, and how the agent came to it.

    Attributes:
        question: as it was asked.
        text: the answer.
        finish: whether the model answered, or had to be cut off with what it wrote last.
        rounds: its replies in order.
        chunks: all that it read as latents.
        messages: the chat with the model, whose contexts are latents.
        tools: signatures of the tools in it.
    """

    question: str
    text: str
    finish: Literal["answered", "cut off"]
    rounds: tuple[Round, ...]
    chunks: Sequence[Chunk] = field(repr=False)
    messages: Sequence[Message] = field(repr=False)
    tools: Sequence[object] = field(repr=False)

    @property
    def expanded(self) -> tuple[Chunk, ...]:
        """The chunks read word for word, in the order in which they were expanded."""
        return tuple(chunk for step in self.rounds for chunk in step.expanded)

    @property
    def transcript(self) -> str:
        """The rounds as text: what was expanded and why, and the positions read."""
        lines = [f"Question: {self.question}"]
        for number, step in enumerate(self.rounds, start=1):
            read = f"{step.positions_read} of {step.positions} positions read"
            lines += [f"\nRound {number} ({read})", f"  {step.reply.strip()}"]
            lines += [f"  -> {describe(chunk)}" for chunk in step.expanded]
            lines += [f"  -> {note}" for note in step.notes]
        return "\n".join([*lines, f"\nAnswer ({self.finish}): {self.text}"])

    def to_dict(self) -> dict[str, Any]:
        """Return what the page of an answer shows, in JSON."""
        chunks = self.chunks
        return {
            "question": self.question,
            "text": self.text,
            "finish": self.finish,
            "chunks": len(chunks),
            "tokens": sum(chunk.latents.tokens for chunk in chunks),
            "latents": sum(len(chunk.latents) for chunk in chunks),
            "expanded": [chunk.number for chunk in self.expanded],
            "rounds": [
                {
                    "reply": step.reply,
                    "expanded": [_chunk_fields(chunk) for chunk in step.expanded],
                    "notes": list(step.notes),
                    "positions": step.positions,
                    "positions_read": step.positions_read,
                }
                for step in self.rounds
            ],
        }

    def to_row(self) -> dict[str, object]:
        """Return the chat as a row of training data, which the recipes read as a chat.

        Its contexts are texts again. See `row_error` for answers whose row is of no use.
        """
        messages = [_as_row(message) for message in self.messages]
        return {"messages": messages, **({"tools": list(self.tools)} if self.tools else {})}

    @property
    def row_error(self) -> str | None:
        """Reason for which `launch.prepare` refuses the row, such as an empty reply, or None."""
        try:
            read_chat_row(self.to_row(), longest=sys.maxsize)
        except RowError as error:
            return error.detail
        return None


class Agent:
    """Answers questions about documents, which it reads as latents, chunk by chunk.

        agent = lclm_jax.Agent(model, store)
        answer = agent.ask("Which invoice was paid twice?")
        answer.text, answer.expanded, answer.transcript

    `source` is a Store, or latents of texts, also by name. All chunks stand, numbered and
    compressed, in the first turn; the model may ask for chunks up to `max_rounds` times, of
    `budget` tokens together, and must expand `least_rounds` times before it answers. `form` is
    "text" for models trained as in the paper, "tools" for those that call tools. Latents are
    made once, and each round reads only what is new.

    Raises TextError for no documents, ConfigError for settings out of range.
    """

    def __init__(
        self,
        model: LanguageModel,
        source: Source,
        form: Literal["text", "tools"] = "text",
        chunk_tokens: int = CHUNK_TOKENS,
        max_rounds: int = MAX_ROUNDS,
        least_rounds: int = 1,
        budget: int = DEFAULT_BUDGET,
        max_tokens: int = 256,
        sampling: Sampling = GREEDY,
        ratio: int | None = None,
    ):
        if form not in FORMS:
            raise ConfigError(f"form must be text or tools, got {form!r}")
        self.model, self.form = model, FORMS[form]
        self.max_rounds = parse(Count, max_rounds, "max_rounds")
        self.least_rounds = parse(Count, least_rounds, "least_rounds")
        self.budget = parse(Count, budget, "budget")
        self.max_tokens, self.sampling = parse(Size, max_tokens, "max_tokens"), sampling
        self._source, self._ratio = source, ratio
        self._chunk_tokens = parse(Size, chunk_tokens, "chunk_tokens")

    @cached_property
    def chunks(self) -> list[Chunk]:
        """The chunks of all documents."""
        return number_chunks(self._source, self._chunk_tokens, self._ratio)

    def ask(
        self, question: str, on_round: Callable[[Round], None] = lambda _: None, seed: int = 0
    ) -> AgentAnswer:
        """Answer a question; `on_round` is called after every reply of the model.

        Raises the errors of `LanguageModel.chat`.
        """
        messages = [self.form.write_first(self.chunks, question)]
        rounds: list[Round] = []
        left = self.budget
        while True:
            prompt = self.model.read([self.model.render(messages, self.form.tools)])
            (reply,) = self.model.answer(prompt, self.max_tokens, self.sampling, seed)
            wish = self.form.parse(reply.text, len(self.chunks))
            is_last = len(rounds) >= self.max_rounds
            known = [chunk for step in rounds for chunk in step.expanded]
            is_answer = isinstance(wish, str) and (is_last or self._may_answer(rounds))

            expanded, notes = ([], []) if is_answer or is_last else self._follow(wish, known, left)
            left -= sum(chunk.latents.tokens for chunk in expanded)
            if not is_answer and len(rounds) + 1 == self.max_rounds:
                notes.append(self.form.demand)
            positions = (reply.positions, reply.positions_read)
            rounds.append(Round(reply.text, tuple(expanded), tuple(notes), *positions))
            on_round(rounds[-1])
            messages.append(self.form.write_reply(reply.text))
            if is_answer or is_last:
                text = wish if isinstance(wish, str) else reply.text.strip()
                finish = "answered" if is_answer else "cut off"
                rest = (self.chunks, messages, self.form.tools)
                return AgentAnswer(question, text, finish, tuple(rounds), *rest)
            texts = {chunk.number: chunk.text for chunk in expanded}
            messages.append(self.form.write_result(reply.text, texts, notes))

    def _may_answer(self, rounds: Sequence[Round]) -> bool:
        return sum(bool(step.expanded) for step in rounds) >= self.least_rounds

    def _follow(
        self, wish: Request | str | None, known: Sequence[Chunk], left: int
    ) -> tuple[list[Chunk], list[str]]:
        """Return the chunks to show after a reply, of `left` tokens together, and notes."""
        unit = self.form.unit
        if isinstance(wish, str):
            return [], [f"Expand at least one {unit} before you answer. {self.form.usage}"]
        if wish is None or not (wish.numbers or wish.unknown):
            return [], [self.form.usage]
        notes = []
        if wish.unknown:
            listed = _shorten([number[:MAX_NOTED_DIGITS] for number in wish.unknown])
            notes.append(
                f"There is no {unit} {listed}; {unit}s are numbered 1 to {len(self.chunks)}."
            )
        numbers_known = {chunk.number for chunk in known}
        if repeated := [number for number in wish.numbers if number in numbers_known]:
            notes.append(f"{unit.capitalize()} {_listed(repeated)} is above already.")

        expanded, skipped = [], []
        for number in wish.numbers:
            chunk = self.chunks[number - 1]
            if number in numbers_known:
                continue
            if chunk.latents.tokens > left:
                skipped.append(number)
                continue
            expanded.append(chunk)
            left -= chunk.latents.tokens
        if skipped:
            listed = _listed(skipped)
            notes.append(f"{unit.capitalize()} {listed} is too long for the {left} tokens left.")
        return expanded, notes


def describe(chunk: Chunk) -> str:
    """Return where a chunk stands, for a list of sources."""
    return f"chunk {chunk.number}: {chunk.document}, characters {chunk.start} to {chunk.stop}"


def _listed(numbers: Sequence[int]) -> str:
    """Return numbers as a list of ranges, of a bounded length."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], number]
        else:
            ranges.append([number])
    return _shorten(["-".join(map(str, bounds)) for bounds in ranges])


def _shorten(words: Sequence[str]) -> str:
    more = len(words) - MAX_NOTED
    return ", ".join(words[:MAX_NOTED]) + (f" and {more} more" if more > 0 else "")


def _chunk_fields(chunk: Chunk) -> dict[str, Any]:
    names = ("number", "document", "start", "stop", "text")
    return {name: getattr(chunk, name) for name in names}


def _as_row(message: Message) -> dict[str, object]:
    """Return a message in JSON, as datasets write it, with the texts of latents."""
    thoughts = [part.text for part in message["content"] if isinstance(part, Reasoning)]
    words = [part for part in message["content"] if not isinstance(part, Reasoning)]
    reasoning = {"reasoning_content": thoughts[0].strip("\n")} if thoughts else {}
    return {**message, **reasoning, "content": [_as_json(part) for part in words]}


def _as_json(part: Any) -> object:
    if isinstance(part, Latents):
        return {"context": part.text}
    return {"text": part} if isinstance(part, str) else part
