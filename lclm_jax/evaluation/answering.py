"""Answers to questions in a view: in batches of similar length, resumable answer by answer."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from lclm_jax.data.records import Plain
from lclm_jax.data.rows.expand_chat import CHUNK_TOKENS
from lclm_jax.errors import TextError
from lclm_jax.evaluation.answers_file import VERSION, AnswersFile
from lclm_jax.evaluation.questions import Passage, Question
from lclm_jax.evaluation.rendering import render_question
from lclm_jax.evaluation.views import View
from lclm_jax.inference.agent import Agent, AgentAnswer
from lclm_jax.inference.answers import Answer, PositionsError
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.inference.latents import Latents
from lclm_jax.inference.rendering import PromptRecord
from lclm_jax.progress import Progress, without_progress

BATCH_CHARACTERS = 1 << 18  # of all prompts of a batch, latents counted as the text that they take
CHARACTERS_PER_TOKEN = 4  # about, of chunks that stay text
AGENT_TOKENS = 256  # of a reply of the agent, which asks for chunks before it answers


@dataclass(frozen=True)
class Reply:
    """An answer, and the length of its prompt in positions, tokens and latents.

    `fits` is False for a prompt that was not answered because it is longer than the decoder's
    positions.
    """

    text: str
    positions: int
    fits: bool = True


@dataclass
class Answerer:
    """Answers questions with a model, at most `batch` at once.

    Answers are added to `answers` as they come, and taken from there where it has them. Batches
    depend on the questions only, not on the answers known, so a run that was interrupted ends with
    the answers of one that was not. With `skip_long`, a prompt that does not fit the decoder's
    positions has an empty answer in place of an error.
    """

    model: LanguageModel
    answers: AnswersFile
    batch: int = 16
    progress: Progress = without_progress
    skip_long: bool = False

    def answer(self, questions: Sequence[Question], view: View) -> list[Reply]:
        """Answer questions in a view.

        Raises TextError for a prompt that does not fit the decoder's positions, unless those are
        skipped.
        """
        if not questions:
            return []
        keys = [answer_key(question, view) for question in questions]
        distinct = list(dict(zip(keys, questions, strict=True)).values())
        answered = self._answer_batches(distinct, view)
        for _ in self.progress(answered, f"{name_tasks(questions)}, {view.label}", len(distinct)):
            pass
        return [_read_reply(self.answers[key]) for key in keys]

    def _answer_batches(self, questions: Sequence[Question], view: View) -> Iterator[Question]:
        """Answer the questions, and yield each one that is answered."""
        latents: dict[str, Latents] = {}  # of the last batch, by text
        for batch in plan_batches(questions, view, self.batch):
            keys = [answer_key(question, view) for question in batch]
            if any(key not in self.answers for key in keys):
                texts = {part.text for question in batch for part in question.passages}
                latents = {text: latents[text] for text in texts if text in latents}
                replies = self._answer_batch(batch, view, latents)
                self.answers.add(
                    {
                        key: {"task": question.task, "view": view.label, **vars(reply)}
                        for key, question, reply in zip(keys, batch, replies, strict=True)
                    }
                )
            yield from batch

    def _answer_batch(
        self, questions: Sequence[Question], view: View, latents: dict[str, Latents]
    ) -> list[Reply]:
        """Answer questions that are read and decoded together; new latents are added to `latents`.

        The caches of earlier prompts are not used: rounding must not depend on what they were.
        """

        def compress(text: str) -> Latents:
            if text not in latents:
                latents[text] = self.model.compress(text, view.ratio)
            return latents[text]

        self.model.prefixes.clear()
        current = questions[0]
        try:
            if view.name == "expand":
                replies = []
                for current in questions:
                    replies.append(self._ask_agent(current, view, compress))
                return replies
            records = []
            for current in questions:
                record = render_question(current, view, self.model, compress)
                records.append(record or [self._text_end])  # something must be read
            current = questions[self._find_longest(records)]
            return self._answer_records(records, current)
        except TextError as error:
            row = f"{current.task}, row {current.number}, {view.label}"
            raise TextError(f"{row}: {error}") from error

    @property
    def _text_end(self) -> Plain:
        """A token at which texts end, which begins a prompt without any."""
        return Plain(np.array(self.model.tokenizer.stops[:1], np.int32))

    def _find_longest(self, records: Sequence[PromptRecord]) -> int:
        """Return the number of the longest record, of which errors about a batch speak."""
        sizes = [len(self.model.read([record]).tokens[0]) for record in records]
        return sizes.index(max(sizes))

    def _answer_records(self, records: Sequence[PromptRecord], question: Question) -> list[Reply]:
        """Answer records that are read and decoded together, with the settings of a question."""
        limit = self.model.config.decoder.max_positions - question.max_tokens
        too_long: dict[int, Reply] = {}
        if self.skip_long:
            lengths = [int(self.model.read([record]).lengths[0]) for record in records]
            too_long = {n: Reply("", size, False) for n, size in enumerate(lengths) if size > limit}
        short = [record for n, record in enumerate(records) if n not in too_long]
        answers = iter(
            self.model.answer(self.model.read(short), question.max_tokens, question.sampling)
            if short
            else []
        )
        return [too_long.get(n) or _as_reply(next(answers)) for n in range(len(records))]

    def _ask_agent(
        self, question: Question, view: View, compress: Callable[[str], Latents]
    ) -> Reply:
        """Answer with the agent, which reads the passages in chunks and expands some.

        A question without passages has nothing to expand, and is answered as text.
        """
        if not any(passage.text for passage in question.passages):
            (reply,) = self._answer_batch([question], View("text"), {})
            return reply
        try:
            answer = ask_agent(self.model, question, view, compress)
        except PositionsError:
            if not self.skip_long:
                raise
            return Reply("", self.model.config.decoder.max_positions, False)
        text = shorten(answer.text, question, self.model)
        return Reply(text, answer.rounds[-1].positions)


def shorten(text: str, question: Question, model: LanguageModel) -> str:
    """Return the beginning of an answer that the question allows: its bound and stop strings."""
    tokens = model.tokenizer.encode(text)
    if len(tokens) > question.max_tokens:
        text = model.tokenizer.decode(tokens[: question.max_tokens])
    ends = [text.find(stop) for stop in question.sampling.stop if stop in text]
    return text[: min(ends, default=len(text))]


def ask_agent(
    model: LanguageModel, question: Question, view: View, compress: Callable[[str], Latents]
) -> AgentAnswer:
    """Return the answer of the agent, whose question is what the prompt has beside passages.

    The beginning of an answer is left out: the agent's replies begin with a request for chunks.
    Strings that end an answer do not end these.
    """
    messages = [message for message in question.messages if message["role"] != "assistant"]
    texts = (
        "".join(part for part in message["content"] if isinstance(part, str)).strip()
        for message in messages
    )
    text = "\n\n".join(filter(None, texts))
    agent = Agent(
        model,
        [compress(passage.text) for passage in question.passages if passage.text],
        chunk_tokens=view.chunk_tokens or CHUNK_TOKENS,
        max_tokens=max(AGENT_TOKENS, question.max_tokens),
        sampling=replace(question.sampling, stop=()),
    )
    return agent.ask(text)


def _as_reply(answer: Answer) -> Reply:
    return Reply(answer.text, answer.positions)


def _read_reply(answer: Mapping[str, Any]) -> Reply:
    return Reply(answer["text"], answer["positions"], answer.get("fits", True))


def name_tasks(questions: Sequence[Question]) -> str:
    """Return the name of the questions' task, without a length if they have several."""
    names = {question.task for question in questions}
    return names.pop() if len(names) == 1 else questions[0].task.partition("@")[0]


def answer_key(question: Question, view: View) -> str:
    """Return the key of an answer in a file: a hash of the question and the view.

    A question without passages has the same answer in every view.
    """
    view = view if question.passages else View("text")
    return hashlib.sha256(f"{VERSION} {question.identity} {view.label}".encode()).hexdigest()


def plan_batches(questions: Sequence[Question], view: View, batch: int) -> list[list[Question]]:
    """Split questions into batches of at most `batch`, the longest first.

    Questions of a batch have the same bound and sampling; those about the same passages are
    neighbours. Sizes are powers of two, which bounds the number of compiled programs, and the
    characters of a batch, padded to its longest question, stay within BATCH_CHARACTERS.
    """

    def order(question: Question) -> tuple[int, int, str, int]:
        texts = [part.text for part in question.passages]
        joined = hashlib.sha256("\0".join(texts).encode()).hexdigest()
        return (-sum(map(len, texts)), -count_characters(question, view), joined, question.number)

    def settings(question: Question) -> tuple[int, str]:
        return question.max_tokens, str(question.sampling)

    batches: list[list[Question]] = []
    for _, group in groupby(sorted(questions, key=settings), settings):
        waiting = sorted(group, key=order)
        while waiting:
            longest = max(count_characters(waiting[0], view), 1)
            count = min(batch, len(waiting), max(1, BATCH_CHARACTERS // longest))
            count = 1 << (count.bit_length() - 1)
            batches.append(waiting[:count])
            waiting = waiting[count:]
    return batches


def count_characters(question: Question, view: View) -> int:
    """Return about the characters of a prompt; a passage that is compressed counts for fewer."""
    parts = [part for content in question.contents for part in content]
    text = sum(len(part) for part in parts if isinstance(part, str))
    passages = sum(len(part.text) for part in parts if isinstance(part, Passage))
    chunks = min(passages, view.raw_chunks * (view.chunk_tokens or 0) * CHARACTERS_PER_TOKEN)
    return text + chunks + (0 if view.name == "nothing" else passages // (view.ratio or 1))
