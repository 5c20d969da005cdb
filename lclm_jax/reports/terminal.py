"""Tables of an evaluation for the terminal."""

import logging

from rich.table import Table
from rich.text import Text

from lclm_jax.cli import show_table
from lclm_jax.reports.findings import Figures, compare, interval, judge_ratios
from lclm_jax.reports.plots import VIEW_NAMES

SAMPLES_SHOWN = 3  # of each kind


def show_evaluation(evaluation: Figures):
    """Print the figures of an evaluation and its first samples."""
    show_table(accuracy_table(evaluation))
    for sentence in judge_ratios(evaluation["reconstruction"]):
        logging.info(sentence)
    for table in sample_tables(evaluation["samples"]):
        if table.row_count:
            show_table(table)


def accuracy_table(evaluation: Figures) -> Table:
    """Return the accuracy on held-out text in every view, one row a comparison."""
    parameters = sum(evaluation["parameters"].values())
    table = Table(
        "held-out text",
        *VIEW_NAMES.values(),
        title=f"{parameters:,} parameters, {evaluation['ratio']} tokens a latent",
        caption="right, with 95 % intervals",
    )
    for item in compare(evaluation):
        shares = (item.latents, item.text, item.nothing)
        table.add_row(item.name, *map(interval, shares))
    return table


def sample_tables(samples: Figures) -> tuple[Table, Table]:
    """Return the first reconstructed passages and the first answered questions."""
    passages = Table("passage", "written from its latents", show_lines=True)
    for sample in samples["reconstruction"][:SAMPLES_SHOWN]:
        passages.add_row(Text(sample["passage"]), Text(sample["written"]))

    questions = Table("context", "question", "answered from its latents", "truth", show_lines=True)
    for sample in samples["questions"][:SAMPLES_SHOWN]:
        cells = (sample[key] for key in ("context", "question", "from_latents", "answer"))
        questions.add_row(*map(Text, cells))
    return passages, questions
