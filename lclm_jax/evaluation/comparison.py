"""Comparison of two results, question by question."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lclm_jax.errors import UserError
from lclm_jax.evaluation.results import Results
from lclm_jax.evaluation.samples import Sample
from lclm_jax.evaluation.statistics import Difference, Mean, index_samples, paired_difference

IGNORED_SETTINGS = ("command",)  # it names the directory of the results, so it always differs


class ComparisonError(UserError, ValueError):
    """Two results that have no question in common."""


@dataclass(frozen=True)
class ComparedRow:
    """Scores of both results in one task, length and view, on the questions that both have."""

    task: str
    length: int | None
    view: str
    first: Mean
    second: Mean
    difference: Difference  # the second less the first


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
        rows: in the order of the first results.
        only_first: answers of the first results without a partner in the second.
        only_second: answers of the second results without a partner in the first.
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
    cells, only_first, only_second = _match(first, second, view)
    if not cells:
        raise ComparisonError(_explain_no_match(first, second, view))
    rows = []
    for (task, length, label), (left, right) in cells.items():
        means = Mean.of_samples(left), Mean.of_samples(right)
        rows.append(ComparedRow(task, length, label, *means, paired_difference(right, left)))
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


Cell = tuple[str, int | None, str]


def _match(
    first: Results, second: Results, view: str | None
) -> tuple[dict[Cell, tuple[list[Sample], list[Sample]]], int, int]:
    """Return the common samples by task, length and view, and how many each side has alone."""
    cells: dict[Cell, tuple[list[Sample], list[Sample]]] = {}
    alone = [0, 0]
    for label in [view] if view else dict.fromkeys([*first.views, *second.views]):
        left, right = (
            index_samples(sample for sample in results.samples if sample.view == label)
            for results in (first, second)
        )
        alone[0] += len(left.keys() - right.keys())
        alone[1] += len(right.keys() - left.keys())
        for question, sample in left.items():
            if question in right:
                cell = cells.setdefault((sample.task, sample.length, label), ([], []))
                cell[0].append(sample)
                cell[1].append(right[question])
    return cells, alone[0], alone[1]


def _explain_no_match(first: Results, second: Results, view: str | None) -> str:
    for results, name in ((first, "first"), (second, "second")):
        if view and view not in results.views:
            listed = ", ".join(results.views) or "none"
            return f"the {name} results have the views {listed}; got --view {view!r}"
    return (
        "the two results have no question in common: no answer of both has the same task, length, "
        "number, prompt and view; evaluate both with the same tasks, lengths and views"
    )
