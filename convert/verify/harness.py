"""Compares answers with those of the harness' own Hugging Face model, in float32.

    python -m convert.verify.harness HF_DIR CHECKPOINT --tasks niah_single_1 --lengths 1024

HF_DIR is the decoder that `convert.from_towers` read; the checkpoint answers in the view `text`.
Needs the extras `parity` and `evaluation`.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np
from rich.table import Table

from lclm_jax.cli import listed, make_parser, path, run, setting, show_table
from lclm_jax.config.settings import Size
from lclm_jax.inference.language_model import LanguageModel, load

BATCH = 8  # prompts read at once


@dataclass(frozen=True)
class TaskComparison:
    """Responses to the rows of a task: those of the reference and ours, in the same order.

    A response is a text, a log-likelihood, or a log-likelihood and whether it is the greedy one.
    """

    task: str
    expected: Sequence[Sequence[Any]]
    actual: Sequence[Sequence[Any]]

    @property
    def differing(self) -> list[int]:
        """Numbers of rows with another text, another best choice or other greedy choices."""
        pairs = enumerate(zip(self.expected, self.actual, strict=True))
        return [row for row, pair in pairs if summarise(pair[0]) != summarise(pair[1])]

    @property
    def largest_difference(self) -> float | None:
        """Largest relative difference of log-likelihoods; None for texts."""
        expected, actual = (likelihoods(rows) for rows in (self.expected, self.actual))
        return float(np.max(np.abs(actual / expected - 1))) if len(expected) else None


def summarise(responses: Sequence[Any]) -> list[Any]:
    """Return what the responses to a row decide: the texts, or the best choice and greediness."""
    if isinstance(responses[0], str):
        return list(responses)
    best = int(np.argmax(likelihoods([responses])))
    return [best, *(response[1] for response in responses if isinstance(response, tuple))]


def likelihoods(rows: Sequence[Sequence[Any]]) -> np.ndarray:
    """Return all log-likelihoods in rows of responses."""
    values = [value for row in rows for value in row if not isinstance(value, str)]
    return np.array([value[0] if isinstance(value, tuple) else value for value in values])


def compare_tasks(
    reference: Path,
    model: LanguageModel,
    tasks: Sequence[str],
    lengths: Sequence[int] = (),
    limit: int | None = None,
    include: Path | None = None,
    chat: bool = False,
) -> list[TaskComparison]:
    """Answer tasks with a Hugging Face model and with ours, which reads contexts as text."""
    from lm_eval.models.huggingface import HFLM

    from lclm_jax.evaluation.answers_file import AnswersFile
    from lclm_jax.evaluation.harness.adapter import HarnessModel
    from lclm_jax.evaluation.harness.tasks import answer_rows, load_tasks
    from lclm_jax.evaluation.views import View

    settings = {"pretrained": str(reference), "dtype": "float32", "batch_size": BATCH}
    hugging_face = HFLM(**{**settings, "device": "cpu"})
    comparisons = []
    with TemporaryDirectory() as directory:
        answers = AnswersFile(Path(directory) / "answers.jsonl")
        adapter = HarnessModel(model, View("text"), answers, batch=BATCH)
        for task in load_tasks(tasks, lengths, model.tokenizer, include):
            expected, actual = (
                [read_responses(samples[0]) for samples in rows.values()]
                for rows in (
                    answer_rows(task, each, limit, chat) for each in (hugging_face, adapter)
                )
            )
            comparisons.append(TaskComparison(task.label, expected, actual))
    return comparisons


def read_responses(sample: Mapping[str, Any]) -> list[Any]:
    """Return the responses to a row, one for each choice."""
    return [response for responses in sample["resps"] for response in responses]


def show_comparisons(comparisons: Sequence[TaskComparison]):
    """Print a table, and the texts of rows that differ."""
    table = Table("task", "rows", "equal answers", "largest relative difference")
    for each in comparisons:
        rows, difference = len(each.expected), each.largest_difference
        shown = "" if difference is None else f"{difference:.1e}"
        table.add_row(each.task, str(rows), str(rows - len(each.differing)), shown)
    show_table(table)
    for each in comparisons:
        for row in each.differing:
            expected, actual = each.expected[row], each.actual[row]
            sys.stdout.write(f"{each.task}, row {row}: expected {expected}, got {actual}\n")


def main():
    parser = make_parser(__doc__)
    parser.add_argument("source", type=path, help="directory of the decoder in Hugging Face form")
    parser.add_argument("checkpoint", type=path, help="a checkpoint with this decoder")
    parser.add_argument("--tasks", type=listed(str), required=True, help="of the harness")
    parser.add_argument("--lengths", type=listed(Size), default=(), help="in tokens, for RULER")
    parser.add_argument("--limit", type=setting(Size), help="rows of each task (default: all)")
    parser.add_argument("--include", type=path, metavar="DIR", help="with further tasks in YAML")
    parser.add_argument("--chat", action="store_true", help="use the chat template")
    arguments = vars(parser.parse_args())
    jax.config.update("jax_platforms", "cpu")
    model = load(arguments.pop("checkpoint"))
    exact = LanguageModel(replace(model.config, dtype="float32"), model.params, model.tokenizer)
    show_comparisons(compare_tasks(arguments.pop("source"), exact, **arguments))


if __name__ == "__main__":
    run(main)
