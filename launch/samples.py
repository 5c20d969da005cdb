"""Write sample input for every source of the recipes, from Python itself and reasoning-gym.

python -m launch.samples --out runs/samples
python -m launch.prepare --recipe configs/recipes/pretraining.py --inputs runs/samples --out DIR
"""

import sys
from pathlib import Path

from rich.table import Table

from lclm_jax.cli import make_parser, path, run, show_table
from lclm_jax.data.synthetic.samples import SOURCES, write_samples
from lclm_jax.progress import track


def main():
    parser = make_parser(__doc__)
    parser.add_argument(
        "--out", type=path, required=True, help="directory for one JSON lines file a source"
    )
    directory = parser.parse_args().out

    inputs = write_samples(directory, track)
    table = Table("source", "content", "file", "MB")
    for name, (file,) in inputs.items():
        content = (SOURCES[name].__doc__ or "").removesuffix(".")
        megabytes = Path(file).stat().st_size / 1e6
        table.add_row(name, content, Path(file).name, f"{megabytes:.1f}")
    show_table(table)
    sys.stdout.write(
        "prepare them with python -m launch.prepare --recipe configs/recipes/NAME.py "
        f"--inputs {directory} --out DIR\n"
    )


if __name__ == "__main__":
    run(main)
