"""Choose a setting of compression by questions of your own, or learn that you should not compress.

    python -m launch.tune --checkpoint CKPT --documents DIR --questions qa.jsonl --out OUT
A row of qa.jsonl is {"question": TEXT, "answer": TEXT, "document": PATH BELOW DIR}. Each setting
answers beside the uncompressed decoder, no documents, and the first tokens at as many positions.
Recommended is the cheapest that is shown to be at most --margin worse than the first of these.
"""

import argparse
import shlex
import sys

from lclm_jax import cli
from lclm_jax.cli import listed, path, setting
from lclm_jax.config.settings import Count, Size
from lclm_jax.evaluation.tasks.own_questions import MAX_TOKENS, load_questions
from lclm_jax.evaluation.tuning import DEFAULT_MARGIN, Grid, tune
from lclm_jax.inference.language_model import load
from lclm_jax.progress import track
from lclm_jax.reports.evaluation import write_page
from lclm_jax.reports.tuning import describe_recommendation, tabulate_outcomes

GRID = Grid()


def main():
    parser = cli.make_parser(__doc__)
    cli.add_checkpoint_argument(parser, "a training run or a converted checkpoint")
    for name in ("documents", "questions", "out"):
        parser.add_argument(f"--{name}", type=path, required=True)
    parser.add_argument("--ratios", type=listed(Size), default=(), help="(default: the model's)")
    parser.add_argument("--chunks", type=listed(Size), default=GRID.chunk_tokens, help="in tokens")
    parser.add_argument(
        "--raw", type=listed(Count), default=GRID.raw_chunks, help="chunks as text beside latents"
    )
    parser.add_argument("--expand", action=argparse.BooleanOptionalAction, default=GRID.expand)
    parser.add_argument("--margin", type=float, default=DEFAULT_MARGIN, help="of accuracy to lose")
    parser.add_argument("--max-tokens", type=setting(Size), default=MAX_TOKENS, help="of an answer")
    parser.add_argument("--batch", type=setting(Size), default=16, help="questions at once")
    arguments = parser.parse_args()

    files = (arguments.questions, arguments.documents)
    questions = load_questions(*files, max_tokens=arguments.max_tokens)
    grid = Grid(arguments.ratios, arguments.chunks, arguments.raw, arguments.expand)
    model = load(arguments.checkpoint)
    command = {"command": shlex.join(["python", "-m", "launch.tune", *sys.argv[1:]])}
    limits = (arguments.margin, arguments.batch)
    tuning = tune(model, questions, arguments.out, grid, *limits, command, track)
    cli.show_table(tabulate_outcomes(tuning))
    page = write_page(arguments.out, tuning.results)
    sys.stdout.write(f"{describe_recommendation(tuning.recommendation)}\nwrote {page}\n")


if __name__ == "__main__":
    cli.run(main)
