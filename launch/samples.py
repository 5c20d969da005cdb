"""Writes sample input for every source of the recipes, from the running Python's standard library and reasoning-gym.

python -m launch.samples --out runs/samples
python -m launch.prepare --recipe configs/recipes/pretraining.py --inputs runs/samples --out runs/pretraining
"""

import argparse
import sys
from pathlib import Path

from rich.table import Table

from lclm_jax.cli import path, run, show_table
from lclm_jax.data.synthetic.samples import SOURCES, write_samples
from lclm_jax.progress import track


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=path, required=True, help="directory for one jsonl file a source"
    )
    arguments = parser.parse_args()
    inputs = write_samples(arguments.out, track)
    table = Table("source", "what it is", "file", "MB")
    for name, (file,) in inputs.items():
        said = (SOURCES[name].__doc__ or "").removesuffix(".")
        table.add_row(name, said, Path(file).name, f"{Path(file).stat().st_size / 1e6:.1f}")
    show_table(table)
    sys.stdout.write(
        f"prepare them by python -m launch.prepare --recipe configs/recipe_*.py --inputs {arguments.out} --out DIR\n"
    )


if __name__ == "__main__":
    run(main)
