"""Evaluation of a model on documents it has never seen, in every view of their contexts.

The same decoder reads the same examples with their contexts as latents, as full text, and left out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import numpy as np

from lclm_jax.config import ConfigError, DataConfig
from lclm_jax.config.settings import FileName, Interval, Settings, Size
from lclm_jax.data.loading import PreparedSource
from lclm_jax.data.recipe import interleaved_record, reconstruction_record, sft_record
from lclm_jax.data.records import VIEWS, Context, Plain, Section, Span, View
from lclm_jax.data.records.views import at_ratio, train_first_span
from lclm_jax.data.rows.raw_examples import RawExample
from lclm_jax.evaluation.held_out.results import (
    Continuation,
    Evaluation,
    PassageScore,
    Questions,
    Reconstruction,
    Sample,
    Samples,
)
from lclm_jax.evaluation.statistics import Proportion
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.progress import Progress, without_progress
from lclm_jax.scoring import Score, score

MAX_EXAMPLES = 100  # passages and documents of a source
ANSWERED_AT_ONCE = 16  # questions
MAX_ANSWER_TOKENS = 16
MAX_CONTINUATION_TOKENS = 24
TEXT_SAMPLES, ANSWER_SAMPLES = 4, 8

MakeRecord = Callable[[list[Section], np.random.Generator], list[Span]]


@dataclass(frozen=True)
class EvaluationConfig(Settings):
    """The sources that a recipe's model is evaluated on."""

    reconstruction_sources: tuple[FileName, ...] = ("docs", "haystacks")
    # Lengths of passages in tokens; none: half the shortest trained on, and all trained on.
    passage_lengths: tuple[Interval, ...] = ()
    continuation_sources: tuple[FileName, ...] = ("docs", "code")
    question_source: FileName | None = "tasks"
    question_count: Size = 128


@dataclass(frozen=True)
class Evaluator:
    """Evaluates a model on the held-out examples of a prepared directory, `data.directory`."""

    model: LanguageModel
    data: DataConfig
    progress: Progress = without_progress

    def evaluate(self, settings: EvaluationConfig) -> Evaluation:
        """Return everything that the settings ask for.

        Raises ConfigError where data.reconstruction_length, the length of passages, is not set.
        """
        if self.data.reconstruction_length is None:
            raise ConfigError(
                "expected passages of set lengths to evaluate, got "
                "data.reconstruction_length=None; "
                "set it to the least and most tokens of a passage"
            )
        shortest, longest = self.data.reconstruction_length
        default_lengths = ((shortest // 2, shortest // 2), (shortest, longest))
        reconstruction = [
            self.reconstruction(source, lengths, MAX_EXAMPLES)
            for source in settings.reconstruction_sources
            for lengths in settings.passage_lengths or default_lengths
        ]
        questions = None
        if settings.question_source:
            questions = self.questions(settings.question_source, settings.question_count)
        compression = self.model.config.compression
        return Evaluation(
            parameters=_count_parameters(self.model),
            ratio=compression.ratio,
            window=compression.window,
            reconstruction=reconstruction,
            continuation=[
                self.continuation(source, MAX_EXAMPLES) for source in settings.continuation_sources
            ],
            questions=questions,
            samples=self._samples(settings, questions),
        )

    def _samples(self, settings: EvaluationConfig, questions: Questions | None) -> Samples:
        passages = [
            self.reconstruction_samples(source, TEXT_SAMPLES)
            for source in settings.reconstruction_sources
        ]
        openings = [
            self.continuation_samples(source, TEXT_SAMPLES)
            for source in settings.continuation_sources[:1]
        ]
        return Samples(
            reconstruction=[sample for samples in passages for sample in samples],
            continuation=[sample for samples in openings for sample in samples],
            questions=questions.answers[:ANSWER_SAMPLES] if questions else [],
        )

    def reconstruction(self, source: str, lengths: tuple[int, int], limit: int) -> Reconstruction:
        """Score the tokens of held-out passages, each given those before it, in every view.

        `lengths` bounds the passages in tokens. A model with several ratios is also scored from
        latents of each. The token that ends the turn does not count.
        """
        records = self._reconstruction_records(source, lengths, limit)
        records = [train_first_span(record) for record in records]
        ratios = sorted(self.model.config.compression.all_ratios)
        ratio_views: dict[str, View] = {}
        if len(ratios) > 1:
            ratio_views = {_ratio_view(ratio): partial(at_ratio, ratio=ratio) for ratio in ratios}
        scores = self._score(source, records, {**VIEWS, **ratio_views})
        results = {name: PassageScore.of(total) for name, total in scores.items()}
        return Reconstruction(
            source,
            lengths,
            passages=len(records),
            views={name: results[name] for name in VIEWS},
            ratios={ratio: results[_ratio_view(ratio)] for ratio in ratios if ratio_views},
        )

    def continuation(self, source: str, limit: int) -> Continuation:
        """Score the plain half of held-out documents, in every view of the compressed half."""
        records = self._interleaved_records(source, limit)
        scores = self._score(source, records, VIEWS)
        losses = {name: total.loss for name, total in scores.items()}
        return Continuation(source, len(records), losses)

    def questions(self, source: str, limit: int) -> Questions:
        """Answer held-out questions by greedy generation, in every view.

        Only the first question of a chat is asked. White space around an answer does not count.
        """
        examples = self._open(source)
        prompts = [_prompt_of(record) for record in _make_records(examples, limit, sft_record)]
        answers = [_question_sample(examples.raw(i)) for i in range(len(prompts))]
        accuracies = {}
        for view in VIEWS:
            given = self._answer(prompts, view)
            for sample, answer in zip(answers, given, strict=True):
                sample[f"from_{view}"] = answer
            right = sum(sample["answer"] == sample[f"from_{view}"] for sample in answers)
            accuracies[view] = Proportion.of(right, len(prompts))
        return Questions(len(prompts), accuracies, answers)

    def _answer(self, prompts: Sequence[list[Span]], view: str) -> list[str]:
        answers: list[str] = []
        starts = range(0, len(prompts), ANSWERED_AT_ONCE)
        for start in self.progress(starts, f"questions from {view}"):
            batch = [VIEWS[view](prompt) for prompt in prompts[start : start + ANSWERED_AT_ONCE]]
            answers += self.model.complete_records(batch, max_tokens=MAX_ANSWER_TOKENS)
        return [answer.strip() for answer in answers]

    def reconstruction_samples(self, source: str, count: int) -> list[Sample]:
        """Return held-out passages and what the model writes when asked to repeat them."""
        records = self._reconstruction_records(source, self.data.reconstruction_length, count)
        passages = [_first_context(record) for record in records]
        prompts = [_prompt_of(record) for record in records]
        longest = max(map(len, passages))
        written = self.model.complete_records(prompts, max_tokens=longest)
        decode = self.model.tokenizer.decode
        return [
            {"source": source, "passage": decode(tokens), "written": text}
            for tokens, text in zip(passages, written, strict=True)
        ]

    def continuation_samples(self, source: str, count: int) -> list[Sample]:
        """Return held-out openings, their continuations, and what the model writes next."""
        records = self._interleaved_records(source, count)
        openings = [record[:1] for record in records]
        written = self.model.complete_records(openings, max_tokens=MAX_CONTINUATION_TOKENS)
        decode, samples = self.model.tokenizer.decode, []
        for record, text in zip(records, written, strict=True):
            opening, truth = record[0], record[1]
            assert isinstance(opening, Context) and isinstance(truth, Plain)
            sample = {
                "source": source,
                "opening": decode(np.asarray(opening.tokens)),
                "truth": decode(np.asarray(truth.tokens[:MAX_CONTINUATION_TOKENS])),
                "written": text,
            }
            samples.append(sample)
        return samples

    def _open(self, source: str) -> PreparedSource:
        return PreparedSource(self.data.directory, source, "held", self.model.tokenizer)

    def _reconstruction_records(
        self, source: str, lengths: tuple[int, int] | None, limit: int
    ) -> list[list[Span]]:
        examples, data = self._open(source), replace(self.data, reconstruction_length=lengths)
        make_record = partial(
            reconstruction_record, data=data, tokenizer=self.model.tokenizer, kind=examples.kind
        )
        return _make_records(examples, limit, make_record)

    def _interleaved_records(self, source: str, limit: int) -> list[list[Span]]:
        make_record = partial(interleaved_record, data=self.data)
        return _make_records(self._open(source), limit, make_record)

    def _score(
        self, source: str, records: Sequence[Sequence[Span]], views: Mapping[str, View]
    ) -> dict[str, Score]:
        """Return the score over all records in every view."""
        model = self.model
        scores = score(
            model.weights,
            records,
            model.config,
            model.tokenizer.memory,
            views,
            lambda batches, view: self.progress(batches, f"{source} from {view}"),
        )
        return {name: sum(by_record, Score()) for name, by_record in scores.items()}


def _ratio_view(ratio: int) -> str:
    return f"latents of {ratio} tokens"


def _count_parameters(model: LanguageModel) -> dict[str, int]:
    return {
        component: sum(leaf.size for leaf in jax.tree.leaves(tree))
        for component, tree in model.params.items()
    }


def _make_records(
    examples: PreparedSource, limit: int, make_record: MakeRecord
) -> list[list[Span]]:
    """Make a record of each of the first `limit` examples, the same at every call.

    Examples that are too short for a record are left out.
    """
    made = [
        make_record(examples[i], np.random.default_rng(i)) for i in range(min(limit, len(examples)))
    ]
    return [record for record in made if record]


def _prompt_of(record: Sequence[Span]) -> list[Span]:
    """Return everything before the first trained span."""
    first = next(i for i, span in enumerate(record) if isinstance(span, Plain) and span.trained)
    return list(record[:first])


def _first_context(record: Sequence[Span]) -> np.ndarray:
    return np.asarray(next(span.tokens for span in record if isinstance(span, Context)))


def _question_sample(raw: RawExample) -> Sample:
    question, answer = raw["messages"][:2]
    context, text = question["content"]
    return {
        "context": context["context"],
        "question": text["text"].strip(),
        "answer": answer["content"].strip(),
    }
