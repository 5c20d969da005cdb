"""Tables for the terminal: evaluations, comparisons, and the documents of a store."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from lclm_jax.cli import show_table
from lclm_jax.evaluation.comparison import Comparison
from lclm_jax.evaluation.results import Results, Row
from lclm_jax.reports.formats import UNKNOWN, difference, interval, score, short_count, verdict
from lclm_jax.reports.records import Evaluation, Samples, parse
from lclm_jax.reports.statements import VIEW_NAMES, compare, judge_ratios

MAX_SAMPLES = 3  # of each kind
SCORE_TABLE_WIDTH = 100  # characters
COLUMN_PADDING = 3  # characters between two columns
SCORE_CAPTION = "score ± standard error; in parentheses the 95 % bound of 0 and 100 %"


def show_evaluation(results: Mapping[str, Any]):
    """Print the numbers of an evaluation, as in evaluation.json, and its first samples."""
    evaluation = parse(Evaluation, results)
    show_table(accuracy_table(evaluation))
    for sentence in judge_ratios(evaluation.reconstruction):
        logging.info(sentence)
    for table in sample_tables(evaluation.samples):
        if table.row_count:
            show_table(table)


def accuracy_table(evaluation: Evaluation) -> Table:
    """Return the accuracy on held-out text in every view, with a row per comparison."""
    table = Table(
        "held-out text",
        *VIEW_NAMES.values(),
        title=f"{evaluation.parameter_count:,} parameters, {evaluation.ratio} tokens per latent",
        caption="right, with 95 % intervals",
    )
    for comparison in compare(evaluation):
        shares = (comparison.latents, comparison.text, comparison.nothing)
        table.add_row(comparison.name, *map(interval, shares))
    return table


def sample_tables(samples: Samples) -> tuple[Table, Table]:
    """Return the first reconstructed passages and the first answered questions."""
    passages = Table("passage", "written from its latents", show_lines=True)
    for sample in samples.reconstruction[:MAX_SAMPLES]:
        passages.add_row(Text(sample.passage), Text(sample.written))

    questions = Table("context", "question", "answered from its latents", "truth", show_lines=True)
    for sample in samples.questions[:MAX_SAMPLES]:
        cells = (sample.context, sample.question, sample.from_latents, sample.answer)
        questions.add_row(*map(Text, cells))
    return passages, questions


def tabulate_scores(results: Results, width: int = SCORE_TABLE_WIDTH) -> list[Table]:
    """Return the scores of all tasks and the means of families, with a column for each view.

    Views that do not fit the width are in further tables.
    """
    groups = _score_groups(results)
    lines = [line for group in groups for line in group]
    headings = ("task", "tokens", "questions")
    taken = sum(
        max([len(heading), *(len(line.cells[place]) for line in lines)]) + COLUMN_PADDING
        for place, heading in enumerate(headings)
    )
    scores = [cell for line in lines for cell in line.scores.values()]
    score_width = max(map(len, scores), default=0) + COLUMN_PADDING
    views_at_once = max(1, (width - taken) // score_width)

    tables = []
    for start in range(0, len(results.views), views_at_once):
        views = results.views[start : start + views_at_once]
        table = Table(headings[0], caption=SCORE_CAPTION)
        for heading in (*headings[1:], *views):
            table.add_column(escape(heading), justify="right")
        for group in groups:
            for line in group:
                cells = [line.scores.get(view, UNKNOWN) for view in views]
                table.add_row(*line.cells, *cells, style="bold" if line.is_mean else None)
            table.add_section()
        tables.append(table)
    return tables


@dataclass(frozen=True)
class _ScoreLine:
    """A line of a table: its first cells, and the scores by view."""

    cells: tuple[str, str, str]
    scores: dict[str, str]
    is_mean: bool


def _score_groups(results: Results) -> list[list[_ScoreLine]]:
    """Return a group of lines for every family and length: its tasks, then their mean."""
    means = [row for row in results.family_rows(baseline=None) if len(row.tasks) > 1]
    groups: dict[tuple[str, int | None], dict[tuple[str, ...], list[Row]]] = {}
    for row in (*results.tables(baseline=None), *means):
        group = groups.setdefault((row.family, row.length), {})
        group.setdefault(row.tasks, []).append(row)
    return [[_score_line(rows) for rows in group.values()] for group in groups.values()]


def _score_line(rows: Sequence[Row]) -> _ScoreLine:
    first = rows[0]
    counts = sorted({row.score.count for row in rows})
    questions = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
    tokens = "" if first.length is None else short_count(first.length)
    scores = {row.view: score(row.score, row.is_share) for row in rows}
    return _ScoreLine((escape(first.name), tokens, questions), scores, len(first.tasks) > 1)


def tabulate_comparison(comparison: Comparison, names: tuple[str, str]) -> list[Table]:
    """Return a table for every view, after a table of warnings where settings differ.

    `names` are those of the first and of the second results.
    """
    names = escape(names[0]), escape(names[1])
    tables = [_tabulate_changes(comparison, names)] if comparison.changes else []
    for view in dict.fromkeys(row.view for row in comparison.rows):
        caption = f"difference: {names[1]} less {names[0]}, with 95 % intervals"
        table = Table("task", title=escape(view), caption=caption)
        for heading in ("questions", *names, "difference", ""):
            table.add_column(heading, justify="left" if heading == "" else "right")
        for row in comparison.rows:
            if row.view == view:
                is_mean = len(row.tasks) > 1
                table.add_row(
                    f"mean of {len(row.tasks)} tasks" if is_mean else escape(row.tasks[0]),
                    str(row.difference.count),
                    score(row.first, row.is_share),
                    score(row.second, row.is_share),
                    difference(row.difference, row.is_share),
                    verdict(row.difference),
                    style="bold" if is_mean else None,
                )
        tables.append(table)
    return tables


def _tabulate_changes(comparison: Comparison, names: tuple[str, str]) -> Table:
    table = Table("setting or version", *names, title="warning: these differ")
    for change in comparison.changes:
        values = (change.name, change.first, change.second)
        table.add_row(*(Text(UNKNOWN if value is None else str(value)) for value in values))
    return table


def tabulate_documents(entries: Sequence[Mapping[str, Any]]) -> Table:
    """Return the documents of a store as a table; a name stays on one line, to be copied."""
    table = Table()
    table.add_column("document", no_wrap=True)
    for heading in ("ratio", "tokens", "latents", "precision", "model", "added"):
        table.add_column(heading)
    for entry in entries:
        model = Path(entry["model_name"]).name or entry["model_id"]
        numbers = [str(entry[name]) for name in ("ratio", "tokens", "latents")]
        table.add_row(entry["name"], *numbers, entry["precision"], model, entry["added"])
    return table
