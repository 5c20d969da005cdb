"""One evaluation: tasks and views of one model, in a directory from which it resumes."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from lclm_jax.errors import ConfigError, TextError
from lclm_jax.evaluation.answering import Answerer, Reply
from lclm_jax.evaluation.answers_file import ANSWERS, AnswersFile
from lclm_jax.evaluation.identity import check_model
from lclm_jax.evaluation.memory import ran_out_of_memory
from lclm_jax.evaluation.metrics import METRICS
from lclm_jax.evaluation.questions import Question
from lclm_jax.evaluation.request import Request
from lclm_jax.evaluation.results import Results, read_efficiency, read_versions
from lclm_jax.evaluation.samples import Sample
from lclm_jax.evaluation.tasks import TASKS, TaskSettings
from lclm_jax.evaluation.views import View, make_views
from lclm_jax.files import locked
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.progress import Progress, without_progress

log = logging.getLogger(__name__)


class EvaluationTask(Protocol):
    """A task that is answered in one view after the other."""

    @property
    def label(self) -> str:
        """Name for messages."""
        ...

    def answer(self, view: View) -> list[Sample]:
        """Return the sample of each row; none where the view does not apply."""
        ...


@dataclass(frozen=True)
class QuestionTask:
    """Questions of a task of this package."""

    label: str
    questions: Sequence[Question]
    answerer: Answerer

    def answer(self, view: View) -> list[Sample]:
        """Return the sample of each question."""
        replies = self.answerer.answer(self.questions, view)
        return [
            score_reply(question, view, reply)
            for question, reply in zip(self.questions, replies, strict=True)
        ]


def score_reply(question: Question, view: View, reply: Reply) -> Sample:
    """Return the sample of a reply. Its score is NaN where the prompt did not fit."""
    score = METRICS[question.metric](reply.text, question.references) if reply.fits else math.nan
    return Sample(
        question.task,
        question.number,
        view.label,
        reply.text,
        question.references,
        {question.metric: score},
        reply.positions,
        question.tags,
        question.identity[:16],
        question.wording,
    )


def evaluate(
    model: LanguageModel,
    request: Request,
    directory: Path,
    settings: Mapping[str, Any] | None = None,
    progress: Progress = without_progress,
) -> Results:
    """Answer all tasks in all views, and write results.json to a directory.

    Batches whose answers the directory has are not computed again. `settings` are added to those in
    the results, such as the command that repeats them.

    Raises ConfigError for a task, view, ratio or length that cannot be evaluated, FileError for
    files of a task that are missing and for a directory with the answers of another model,
    and DirectoryError where another process writes there. A task with a prompt that cannot be read
    in a view, because the decoder's positions or memory do not suffice, has no samples there; the
    reason is logged, and is one of `failures` in the settings of the results. Raises TextError if
    nothing can be read.
    """
    request = request.distinct()
    ratios = list(request.ratios) or sorted(model.config.compression.all_ratios, reverse=True)
    views = make_views(list(request.views), ratios, model)
    with locked(directory):
        check_model(directory, model)
        answers = AnswersFile(directory / ANSWERS)
        tasks = load_tasks(model, request, answers, progress)
        samples, failures = answer_all(tasks, views)
        recorded = {
            "checkpoint": model.name,
            "dtype": model.config.dtype,
            **request.to_dict(),
            "ratios": ratios,
            "failures": failures,
            **(settings or {}),
        }
        results = Results(recorded, read_versions(), samples, read_efficiency(directory))
        results.write(directory)
    return results


def answer_all(
    tasks: Sequence[EvaluationTask], views: Sequence[View]
) -> tuple[list[Sample], list[dict[str, str]]]:
    """Return the samples of all tasks in all views, and what could not be read, with its reason."""
    samples: list[Sample] = []
    failures: list[dict[str, str]] = []
    for task in tasks:
        for view in views:
            try:
                samples += task.answer(view)
            except (TextError, RuntimeError, MemoryError) as error:
                if not isinstance(error, TextError) and not ran_out_of_memory(error):
                    raise
                log.warning("left out: %s", error)
                failures.append({"task": task.label, "view": view.label, "reason": str(error)})
    if failures and not samples:
        raise TextError(failures[0]["reason"])
    return samples, failures


def load_tasks(
    model: LanguageModel, request: Request, answers: AnswersFile, progress: Progress
) -> list[EvaluationTask]:
    """Load the tasks of this package, then those of the harness."""
    own = [name for name in request.tasks if name in TASKS]
    others = [name for name in request.tasks if name not in TASKS]
    wanted = TaskSettings(
        request.data, request.lengths, request.limit, request.seed, model.tokenizer
    )
    answerer = Answerer(model, answers, request.batch, progress)
    questions = [question for name in own for question in TASKS[name](wanted)]
    if request.chat_template == "never":
        questions = [replace(question, is_chat=False) for question in questions]
    names = dict.fromkeys(question.task for question in questions)
    tasks: list[EvaluationTask] = [
        QuestionTask(name, [question for question in questions if question.task == name], answerer)
        for name in names
    ]
    if others:
        from lclm_jax.evaluation.harness.tasks import load_harness_tasks

        from_harness = load_harness_tasks(others, model, request, answers, progress)
        families = {question.tags.get("family", question.task) for question in questions}
        if shared := sorted(families & {task.family for task in from_harness}):
            raise ConfigError(
                f"{shared[0]} names tasks of this package and of the harness, whose prompts and "
                "metrics differ; evaluate them in two directories"
            )
        tasks += from_harness
    elif request.contexts:
        raise ConfigError(
            f"{request.contexts[0]} is a rule for tasks of the harness; none is named"
        )
    return tasks
