"""Comparison of two results, question by question."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lclm_jax.errors import UserError
from lclm_jax.evaluation.results import Results, find_share_tasks
from lclm_jax.evaluation.samples import Sample
from lclm_jax.evaluation.statistics import Difference, Mean, index_samples, paired_difference

IGNORED_SETTINGS = ("command",)  # it names the directory of the results, so it always differs


class ComparisonError(UserError, ValueError):
    """Two results that have no question in common."""


@dataclass(frozen=True)
class ComparedRow:
    """Scores of both results in one view, on the questions of a task that both have.

    A row of several tasks is their macro mean.
    """

    tasks: tuple[str, ...]
    view: str
    first: Mean
    second: Mean
    difference: Difference  # the second less the first
    is_share: bool  # all scores of its tasks lie between 0 and 1, in every view of both results


@dataclass(frozen=True)
class Change:
    """A setting or version in which two results differ; None where one lacks it."""

    name: str
    first: Any
    second: Any


@dataclass(frozen=True)
class Comparison:
    """Paired differences of two results.

    Attributes:
        rows: view by view, for each task, and then for the mean of all tasks with scores from 0 to
            1 where there are several.
        only_first: number of unmatched answers in the first results.
        only_second: number of unmatched answers in the second results.
        changes: settings and versions that differ.
    """

    rows: list[ComparedRow]
    only_first: int
    only_second: int
    changes: list[Change]


def compare(first: Results, second: Results, view: str | None = None) -> Comparison:
    """Compare the answers of two results to the same questions in the same views.

    Questions are the same if task, length, number and hash of the prompt are. `view` is the label
    of the only view to compare. Raises ComparisonError if there is no common question, or no such
    view.
    """
    views = [view] if view else list(dict.fromkeys([*first.views, *second.views]))
    shares = find_share_tasks([*first.samples, *second.samples])
    rows, only_first, only_second = [], 0, 0
    for label in views:
        left, right = (
            index_samples(sample for sample in results.samples if sample.view == label)
            for results in (first, second)
        )
        pairs = [(left[key], right[key]) for key in left if key in right]
        rows += _compare_view(pairs, shares)
        only_first += len(left.keys() - right.keys())
        only_second += len(right.keys() - left.keys())
    if not rows:
        raise ComparisonError(_explain_no_match(first, second, view))
    changes = find_changes(first.settings, second.settings, "settings: ")
    changes += find_changes(first.versions, second.versions, "versions: ")
    return Comparison(rows, only_first, only_second, changes)


def find_changes(
    first: Mapping[str, Any], second: Mapping[str, Any], prefix: str = ""
) -> list[Change]:
    """Return the keys whose values differ, those of nested objects too."""
    changes = []
    for name in dict.fromkeys([*first, *second]):
        left, right = first.get(name), second.get(name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            changes += find_changes(left, right, f"{prefix}{name}.")
        elif left != right and name not in IGNORED_SETTINGS:
            changes.append(Change(f"{prefix}{name}", left, right))
    return changes


Pair = tuple[Sample, Sample]


def _compare_view(pairs: Sequence[Pair], shares: Collection[str]) -> list[ComparedRow]:
    """Return the rows of one view, from the answers of both results to each question.

    `shares` are the tasks with scores from 0 to 1.
    """
    tasks: dict[str, list[Pair]] = {}
    for pair in pairs:
        tasks.setdefault(pair[0].task, []).append(pair)
    rows = [_compare_tasks({task: items}, task in shares) for task, items in tasks.items()]
    averaged = {task: items for task, items in tasks.items() if task in shares}
    return [*rows, _compare_tasks(averaged, True)] if len(averaged) > 1 else rows


def _compare_tasks(tasks: Mapping[str, Sequence[Pair]], is_share: bool) -> ComparedRow:
    """Return the row of a task, or of the mean over several."""
    first, second = (
        {task: [pair[side] for pair in pairs] for task, pairs in tasks.items()} for side in (0, 1)
    )
    all_first, all_second = (
        [s for samples in x.values() for s in samples] for x in (first, second)
    )
    return ComparedRow(
        tuple(tasks),
        all_first[0].view,
        Mean.of_means([Mean.of_samples(samples) for samples in first.values()]),
        Mean.of_means([Mean.of_samples(samples) for samples in second.values()]),
        paired_difference(all_second, all_first),
        is_share,
    )


def _explain_no_match(first: Results, second: Results, view: str | None) -> str:
    for results, name in ((first, "first"), (second, "second")):
        if view and view not in results.views:
            listed = ", ".join(results.views) or "none"
            return f"the {name} results have the views {listed}; got --view {view!r}"
    return (
        "the two results have no question in common: no answer of both has the same task, length, "
        "number, prompt and view; evaluate both with the same tasks, lengths and views"
    )
