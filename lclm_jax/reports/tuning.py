"""Outcomes of a sweep of settings, as a table, and the recommendation."""

from collections.abc import Iterator

from rich.table import Table

from lclm_jax.evaluation.efficiency import Figures
from lclm_jax.evaluation.tuning import Outcome, Recommendation, Tuning
from lclm_jax.evaluation.tuning.grid import BASELINE, NOTHING
from lclm_jax.reports.formats import (
    UNKNOWN,
    byte_count,
    count,
    difference,
    number,
    score,
    short_number,
)

MARKS = {"compress": "→", "cannot tell": "?"}  # of the setting that the recommendation names
HEADINGS = (
    *("right, %", "against text", "positions", "FLOPs"),
    *("compress, s", "first token, s", "peak", "do not fit"),
)
CAPTION = (
    "+ 2x512: beside 2 chunks of 512 tokens as text; first: the first tokens at as many "
    "positions.\nDifferences in points, with 95 % intervals. FLOPs of a question, with its share "
    "of compressing the documents once.\nSeconds of one question: to compress its documents, and "
    "to the first token after them, for expand to the end\nof its answer; peak of the process "
    "where devices do not count their memory, < where it needed as much before."
)


def tabulate_outcomes(tuning: Tuning) -> Table:
    """Return a row for each setting, after those for the text and for nothing."""
    table = Table("", "setting", caption=CAPTION, caption_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    advice = tuning.recommendation
    first = [outcome for outcome in tuning.outcomes if outcome.view in (BASELINE, NOTHING)]
    others = [outcome for outcome in tuning.outcomes if outcome not in first]
    for outcome in (*reversed(first), *others):
        is_named = outcome.label == advice.view
        mark = MARKS.get(advice.verdict, "") if is_named else ""
        table.add_row(mark, *_cells(outcome), style="bold" if is_named else None)
    return table


def _cells(outcome: Outcome) -> Iterator[str]:
    compared = outcome.differences.get(BASELINE.label)
    figures = outcome.figures
    yield from (outcome.label, score(outcome.score), difference(compared))
    yield from (count(round(outcome.positions)), short_number(outcome.flops))
    yield number(figures.compress_seconds) if outcome.is_candidate else UNKNOWN
    yield from (number(figures.prefill_seconds), _peak(figures), str(outcome.unanswered or ""))


def _peak(figures: Figures) -> str:
    if figures.peak_bytes is None:
        return UNKNOWN
    return f"{'' if figures.peak_is_exact else '< '}{byte_count(figures.peak_bytes)}"


def describe_recommendation(recommendation: Recommendation) -> str:
    """Return the verdict and its reasons as lines of text."""
    return "\n".join([recommendation.heading, *recommendation.sentences])
