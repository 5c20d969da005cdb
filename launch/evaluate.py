"""Evaluate a model on long-context tasks, in several views of their passages.

python -m launch.evaluate --checkpoint runs/lclm --tasks ruler,gsm8k --lengths 4096,8192 \
    --views latents,text,nothing,first,random,expand --ratios 4,8,16 --out runs/evaluation

Writes results.json with every answer and index.html with tables and pictures. Run again with the
same directory, it skips the batches that are answered.
"""

import shlex
import sys
from pathlib import Path

from lclm_jax.cli import (
    add_checkpoint_argument,
    make_parser,
    path,
    run,
    show_table,
)
from lclm_jax.evaluation.request import Request, add_request_arguments
from lclm_jax.evaluation.run import evaluate
from lclm_jax.inference.language_model import load
from lclm_jax.progress import track
from lclm_jax.reports.evaluation import write_page
from lclm_jax.reports.terminal import tabulate_scores


def main():
    parser = make_parser(__doc__)
    add_checkpoint_argument(parser, "a training run or a converted model")
    add_request_arguments(parser)
    parser.add_argument("--out", type=path, default=Path("runs/evaluation"), metavar="DIR")
    arguments = vars(parser.parse_args())

    checkpoint, directory = arguments.pop("checkpoint"), arguments.pop("out")
    command = shlex.join(["python", "-m", "launch.evaluate", *sys.argv[1:]])
    model, request = load(checkpoint), Request(**arguments)
    settings = {"command": command, "checkpoint": str(checkpoint)}
    results = evaluate(model, request, directory, settings, track)
    for table in tabulate_scores(results):
        show_table(table)
    sys.stdout.write(f"the page is {write_page(directory, results)}\n")


if __name__ == "__main__":
    run(main)
