"""Tables for the terminal: an evaluation, and the documents of a store."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from lclm_jax.cli import show_table
from lclm_jax.reports.formats import interval
from lclm_jax.reports.records import Evaluation, Samples, parse
from lclm_jax.reports.statements import VIEW_NAMES, compare, judge_ratios

MAX_SAMPLES = 3  # of each kind


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
