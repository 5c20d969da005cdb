"""Tasks of this package: published rows, histories that are read or generated, own questions."""

from collections.abc import Callable

from lclm_jax.evaluation.questions import Question
from lclm_jax.evaluation.tasks import (
    histories,
    locomo,
    longhealth,
    longmemeval,
    lookups,
    own_questions,
    published,
)
from lclm_jax.evaluation.tasks.settings import TaskSettings

__all__ = ["TASKS", "TaskSettings"]

TASKS: dict[str, Callable[[TaskSettings], list[Question]]] = {
    **published.LOADERS,
    "longhealth": longhealth.load,
    "longmemeval": longmemeval.load,
    "locomo": locomo.load,
    "histories": histories.load,
    own_questions.TASK: own_questions.load,
    "lookups": lookups.load,
}
