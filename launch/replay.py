"""Looks again at a batch that stopped training because it was not finite, and says which of its examples are to blame.

python -m launch.replay runs/tiny            # the newest batch in runs/tiny/skipped, or --batch FILE
"""

import argparse
import logging

import numpy as np
from rich.table import Table

from lclm_jax.cli import path, run, show_table
from lclm_jax.training.replay import Replayed, replay


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=path, help="directory that training wrote to")
    parser.add_argument("--batch", type=path, help="a file in its directory skipped/")
    arguments = parser.parse_args()
    found = replay(arguments.run, arguments.batch)
    show_table(as_table(found))
    norms = ", ".join(f"{part} {norm:.4g}" for part, norm in found.norms.items())
    logging.info("loss %.6g; gradient norms: %s", found.loss, norms)
    suspects = found.suspects
    if suspects:
        logging.info("not finite by themselves: %s", ", ".join(suspects))
    elif np.isfinite(found.loss) and all(map(np.isfinite, found.norms.values())):
        logging.info(
            "everything is finite: the batch is not to blame where it was skipped, or the code has changed since"
        )
    else:
        logging.info("no example is to blame by itself: look at the parameters")


def as_table(found: Replayed) -> Table:
    """Every example with its loss, those that are not finite first, then the largest."""
    norms = dict(found.rows)
    table = Table("record", "row", "loss", *(["gradient norm of the row"] if norms else []))
    for record, row, loss in sorted(
        found.examples, key=lambda one: (bool(np.isfinite(one[2])), -one[2])
    ):
        table.add_row(record, str(row), f"{loss:.4f}", *([f"{norms[row]:.4g}"] if norms else []))
    return table


if __name__ == "__main__":
    run(main)
