"""What a trained model makes of text it has never seen, without training anything.

python -m launch.show --config configs/small.py --checkpoint tests/data/models/small
"""

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.table import Table
from rich.text import Text

from convert.from_hf import from_hf
from launch.demo import evaluate
from lclm_jax.cli import path, read_config, run, show_table
from lclm_jax.config import ConfigError
from lclm_jax.evaluation.held_out import Tests
from lclm_jax.inference.language_model import load
from lclm_jax.reports.findings import Figures, compare, interval, judge_ratios
from lclm_jax.reports.plots import VIEW_NAMES

ASKED = 128  # questions at most
SHOWN = 3  # samples of each kind


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config",
        default="configs/small.py",
        help="what it was trained by; tells what it is tested on",
    )
    parser.add_argument(
        "--checkpoint",
        type=path,
        default=Path("tests/data/models/small"),
        help="in the published layout",
    )
    parser.add_argument(
        "--out", type=path, default="runs/show", help="where held-out text is prepared"
    )
    arguments = parser.parse_args()
    config, names = read_config(arguments.config, [f"data.directory={arguments.out}"])
    if "prepare_held_out" not in names:
        raise ConfigError(
            f"{arguments.config} has no function prepare_held_out(); expected one as in configs/small.py"
        )
    with TemporaryDirectory() as directory:
        model = load(from_hf(arguments.checkpoint, Path(directory) / "converted"))
    names["prepare_held_out"](config, model.tokenizer)
    tests = names.get("EVALUATED", Tests())
    show(evaluate(model, config, replace(tests, asked=min(tests.asked, ASKED))))


def show(evaluation: Figures):
    """Prints the figures of an evaluation, and its first samples."""
    sizes, ratio = evaluation["parameters"], evaluation["ratio"]
    table = Table("held-out text", *VIEW_NAMES.values(), caption="right, with 95 % intervals")
    table.title = f"{sum(sizes.values()):,} parameters, {ratio} tokens a latent"
    for item in compare(evaluation):
        table.add_row(
            item.name, *(interval(view) for view in (item.latents, item.text, item.nothing))
        )
    show_table(table)
    for sentence in judge_ratios(evaluation["reconstruction"]):
        logging.info(sentence)
    samples = evaluation["samples"]
    passages = Table("passage", "written from its latents", show_lines=True)
    for sample in samples["reconstruction"][:SHOWN]:
        passages.add_row(Text(sample["passage"]), Text(sample["written"]))
    questions = Table("context", "question", "answered from its latents", "truth", show_lines=True)
    for sample in samples["questions"][:SHOWN]:
        questions.add_row(
            *(Text(sample[key]) for key in ("context", "question", "from_latents", "answer"))
        )
    for one in (passages, questions):
        if one.row_count:
            show_table(one)


if __name__ == "__main__":
    run(main)
