"""Log-likelihoods of continuations, for tasks whose answers are chosen and not written."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from lclm_jax.data.loading import RowBudget, assemble, fill_row
from lclm_jax.data.records import Span, lay_out
from lclm_jax.errors import TextError
from lclm_jax.evaluation.answers_file import VERSION, AnswersFile
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.progress import Progress, without_progress
from lclm_jax.scoring.score import Score, Scorer
from lclm_jax.typing import Params

ROWS = 8  # continuations scored at once
POSITIONS = 128  # rows are padded to a multiple of this, to bound the number of compiled programs


@dataclass(frozen=True)
class Likelihood:
    """The log-likelihood of a continuation.

    Attributes:
        value: natural logarithm of its probability.
        is_greedy: whether each of its tokens is the most likely.
        positions: length of the prompt before it.
    """

    value: float
    is_greedy: bool
    positions: int


@dataclass(frozen=True)
class Continuation:
    """A prompt, and the tokens that follow it, as a record in which only these are trained.

    `name` identifies both, and the view in which the prompt is read.
    """

    name: str
    record: Sequence[Span]


class LikelihoodScorer:
    """Scores continuations of prompts; results are added to `answers`, and taken from there."""

    def __init__(
        self, model: LanguageModel, answers: AnswersFile, progress: Progress = without_progress
    ):
        self.model, self.answers, self.progress = model, answers, progress
        self._score = Scorer(model.config, ROWS)

    @cached_property
    def _params(self) -> Params:
        return self.model.params

    def score(self, continuations: Sequence[Continuation], label: str) -> list[Likelihood]:
        """Return the likelihoods; equal continuations are scored once. Progress shows `label`."""
        keys = [likelihood_key(continuation) for continuation in continuations]
        records = {key: each.record for key, each in zip(keys, continuations, strict=True)}
        scored = self._score_batches(records)
        for _ in self.progress(scored, f"{label}, likelihoods", len(records)):
            pass
        fields = ("value", "is_greedy", "positions")
        return [Likelihood(*(self.answers[key][name] for name in fields)) for key in keys]

    def _score_batches(self, records: Mapping[str, Sequence[Span]]) -> Iterator[str]:
        """Score the records in batches of similar length, and yield the keys of those scored.

        Raises TextError for a record that does not fit the decoder's positions.
        """
        config, memory = self.model.config, self.model.tokenizer.memory
        lengths = {key: len(lay_out(record, config, memory)) for key, record in records.items()}
        longest = max(lengths.values(), default=0) - 1  # the last token is not read
        if longest > config.decoder.max_positions:
            raise TextError(
                f"a prompt with its answer has {longest} positions, expected at most "
                f"{config.decoder.max_positions}; shorten it, or compress more of it"
            )
        order = sorted(records, key=lambda key: (-lengths[key], key))
        for start in range(0, len(order), ROWS):
            batch = order[start : start + ROWS]
            if any(key not in self.answers for key in batch):
                scores = self._score_batch([records[key] for key in batch])
                results = {}
                for key, score in zip(batch, scores, strict=True):
                    positions = lengths[key] - int(score.tokens)
                    likelihood = Likelihood(-score.nll, score.correct == score.tokens, positions)
                    results[key] = vars(likelihood)
                self.answers.add(results)
            yield from batch

    def _score_batch(self, records: Sequence[Sequence[Span]]) -> list[Score]:
        config, memory = self.model.config, self.model.tokenizer.memory
        examples = [lay_out(record, config, memory, row) for row, record in enumerate(records)]
        positions = -(-max(map(len, examples)) // POSITIONS) * POSITIONS
        windows = max(1, *(len(example.pieces) for example in examples))
        budget = RowBudget.for_model(config, positions, 1 << (windows - 1).bit_length())
        rows = [fill_row(budget, [example]) for example in examples]
        rows += [fill_row(budget, [])] * (ROWS - len(rows))
        with self.model.queue.turn():
            return self._score(self._params, [assemble(rows)])[: len(records)]


def likelihood_key(continuation: Continuation) -> str:
    """Return the key of a likelihood in a file of answers."""
    return hashlib.sha256(f"{VERSION} likelihood {continuation.name}".encode()).hexdigest()
