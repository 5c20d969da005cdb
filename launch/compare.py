"""Compare two results of launch.evaluate on the questions that both answered.

python -m launch.compare runs/evaluation-a runs/evaluation-b --view "latents 16x"
"""

import sys

from lclm_jax.cli import make_parser, path, run, show_table
from lclm_jax.evaluation.comparison import compare
from lclm_jax.evaluation.results import Results
from lclm_jax.reports.formats import plural
from lclm_jax.reports.terminal import tabulate_comparison


def main():
    parser = make_parser(__doc__)
    for name in ("first", "second"):
        parser.add_argument(name, type=path, metavar="DIR", help=f"directory of the {name} results")
    parser.add_argument("--view", metavar="LABEL", help="the only view, such as 'latents 16x'")
    arguments = parser.parse_args()

    first, second = (Results.read(file) for file in (arguments.first, arguments.second))
    comparison = compare(first, second, arguments.view)
    names = (arguments.first.name, arguments.second.name)
    for table in tabulate_comparison(comparison, names if names[0] != names[1] else ("A", "B")):
        show_table(table)
    for file, count in (
        (arguments.first, comparison.only_first),
        (arguments.second, comparison.only_second),
    ):
        answers = plural(count, "unmatched answer", "unmatched answers")
        sys.stdout.write(f"{answers} in {file}\n")


if __name__ == "__main__":
    run(main, cache=False)
