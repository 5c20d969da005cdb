"""A sweep of settings over one's own questions, in a directory from which it resumes."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lclm_jax.errors import ConfigError
from lclm_jax.evaluation.answering import Answerer, Reply
from lclm_jax.evaluation.answers_file import ANSWERS, AnswersFile
from lclm_jax.evaluation.identity import check_model
from lclm_jax.evaluation.memory import ran_out_of_memory
from lclm_jax.evaluation.questions import Question
from lclm_jax.evaluation.results import Results, read_versions
from lclm_jax.evaluation.run import score_reply
from lclm_jax.evaluation.samples import Sample
from lclm_jax.evaluation.tasks.own_questions import MIN_CLUSTERS
from lclm_jax.evaluation.tuning.grid import Grid
from lclm_jax.evaluation.tuning.outcomes import Outcome, list_outcomes
from lclm_jax.evaluation.tuning.recommendation import (
    DEFAULT_MARGIN,
    MIN_QUESTIONS,
    Recommendation,
    recommend,
)
from lclm_jax.evaluation.tuning.timings import as_figures, choose_question, measure_views
from lclm_jax.evaluation.views import View
from lclm_jax.files import locked
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.progress import Progress, without_progress

log = logging.getLogger(__name__)
FIRST_TOKENS = "first_tokens.jsonl"


@dataclass(frozen=True)
class Tuning:
    """Results of a sweep, the outcome of each setting, and what to do."""

    results: Results
    outcomes: Sequence[Outcome]
    recommendation: Recommendation


def tune(
    model: LanguageModel,
    questions: Sequence[Question],
    directory: Path,
    grid: Grid = Grid(),
    margin: float = DEFAULT_MARGIN,
    batch: int = 16,
    settings: Mapping[str, Any] | None = None,
    progress: Progress = without_progress,
) -> Tuning:
    """Answer the questions in every setting of a grid, and write results.json to a directory.

    Answers and measurements that the directory has already are not made again. A question whose
    documents do not fit the decoder's positions in a setting has no score there (null in
    results.json), nor has any question in a setting for which memory does not suffice.
    `settings` are added to those in the results.

    Raises ConfigError for fewer than two questions, a margin that is not between 0 and 1 and a
    ratio of which the model is not capable, FileError for a directory with the answers of another
    model, and DirectoryError where another process writes there.
    """
    if len(questions) < MIN_QUESTIONS:
        raise ConfigError(
            f"expected at least {MIN_QUESTIONS} questions, got {len(questions)}; one answer says "
            "nothing about the next"
        )
    if not 0 < margin < 1:
        raise ConfigError(f"expected a margin between 0 and 1, such as 0.02, got {margin}")
    views = grid.views(model.config)
    with locked(directory):
        check_model(directory, model)
        known = AnswersFile(directory / FIRST_TOKENS)
        timed_question = choose_question(questions, model)
        timings = measure_views(model, timed_question, views, known, progress)
        answers = AnswersFile(directory / ANSWERS)
        answerer = Answerer(model, answers, batch, progress, skip_long=True)
        samples = {view: _answer(answerer, questions, view) for view in views}

        figures = {view: as_figures(row) for view, row in timings.items()}
        outcomes = list_outcomes(questions, samples, figures, model.config, model.tokenizer)
        documents = {tuple(question.passages) for question in questions}
        advice = recommend(outcomes, margin, len(questions) / len(documents))
        if not any("cluster" in question.tags for question in questions):
            advice = _note_documents(advice, len(documents))
        recorded = {
            "checkpoint": model.name,
            "dtype": model.config.dtype,
            "grid": asdict(grid),
            "margin": margin,
            "timed_question": timed_question.number,
            "recommendation": {**asdict(advice), "heading": advice.heading},
            "flops": {outcome.label: outcome.flops for outcome in outcomes},
            **(settings or {}),
        }
        listed = [sample for group in samples.values() for sample in group]
        results = Results(recorded, read_versions(), listed, list(timings.values()))
        results.write(directory)
    return Tuning(results, outcomes, advice)


def _note_documents(advice: Recommendation, count: int) -> Recommendation:
    """Add what intervals hold for where questions are not clustered by their documents."""
    note = (
        f"Intervals hold for further questions about these {count} document(s), not for others; "
        f"{MIN_CLUSTERS} or more without a common question would tell about others, too."
    )
    return replace(advice, sentences=(*advice.sentences, note))


def _answer(answerer: Answerer, questions: Sequence[Question], view: View) -> list[Sample]:
    """Return the samples of a view; none has a score where memory does not suffice."""
    try:
        replies = answerer.answer(questions, view)
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        log.warning("%s: memory is full; its questions count as ones that do not fit", view.label)
        replies = [Reply("", 0, fits=False)] * len(questions)
    return [
        score_reply(question, view, reply)
        for question, reply in zip(questions, replies, strict=True)
    ]
