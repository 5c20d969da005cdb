"""Recompute a batch whose loss was not finite, and name the examples that cause it.

python -m launch.replay runs/tiny     # the newest batch in runs/tiny/skipped, or --batch FILE
"""

import logging

import numpy as np
from rich.table import Table

from lclm_jax.cli import make_parser, path, run, show_table
from lclm_jax.training.replay import Replayed, replay


def main():
    parser = make_parser(__doc__)
    parser.add_argument("run", type=path, help="directory that training wrote to")
    parser.add_argument("--batch", type=path, help="a file in its directory skipped/")
    arguments = parser.parse_args()

    result = replay(arguments.run, arguments.batch)
    show_table(example_table(result))
    norms = ", ".join(f"{part} {norm:.4g}" for part, norm in result.norms.items())
    logging.info("loss %.6g; gradient norms: %s", result.loss, norms)
    if result.suspects:
        logging.info("not finite by themselves: %s", ", ".join(result.suspects))
    elif np.isfinite([result.loss, *result.norms.values()]).all():
        logging.info(
            "everything is finite: something else than the batch caused its being skipped, or the "
            "code has changed since"
        )
    else:
        logging.info("no example causes it alone: look at the parameters")


def example_table(result: Replayed) -> Table:
    """Return a table of all examples, the ones that are not finite first, then by loss."""
    norms = dict(result.rows)
    table = Table("record", "row", "loss", *(["gradient norm of the row"] if norms else []))
    ordered = sorted(
        result.examples, key=lambda example: (bool(np.isfinite(example[2])), -example[2])
    )
    for record, row, loss in ordered:
        table.add_row(record, str(row), f"{loss:.4f}", *([f"{norms[row]:.4g}"] if norms else []))
    return table


if __name__ == "__main__":
    run(main)
