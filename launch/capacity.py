"""Does it fit? Compiles a program for a slice that need not be present, and estimates its cost.

    python -m launch.capacity --config configs/lclm_0p6b_4b_16x.py --slice v5p:4x4x4
Jobs that serve: compress is a pass over 16 windows, prefill the last whole chunk of a prompt,
decode one token. They split heads and cache over the slice unless mesh.* is set. Exit status 0
where the program fits, 3 where it does not.

libtpu compiles for TPUs (pip install -e '.[capacity]'), jax's CUDA plugin for H100 and H200
(pip install -e '.[gpu]' with Python 3.12; without tokamax, attention has no kernel there).
"""

import json
import shlex
import sys

from lclm_jax.capacity.advice import advise
from lclm_jax.capacity.arguments import measure_requested, parse_arguments, read_program
from lclm_jax.cli import run, show_table
from lclm_jax.reports import capacity as page


def main():
    arguments = parse_arguments(__doc__)
    program = read_program(arguments)
    results = measure_requested(program, arguments)
    first, advice = results[0], advise(program, results[0])
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(results if arguments.search else first, indent=2)
        arguments.json.write_text(text, encoding="utf-8")
    if arguments.html:
        command = ["python", "-m", "launch.capacity", *sys.argv[1:]]
        page.write_page(arguments.html, shlex.join(command), results, advice)
    if arguments.search:
        show_table(page.choices_table(results))
    show_table(page.figures_table(first))
    lines = [
        f"{page.describe_fit(first)}.",
        *(f"  try {change}" for change in advice),
        page.NOTE,
        "",
    ]
    sys.stdout.write("\n".join(lines))
    if not first["fits"]:
        sys.exit(3)


if __name__ == "__main__":
    run(main)
