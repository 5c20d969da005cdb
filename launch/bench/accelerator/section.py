"""The process of a part: python -m launch.bench.accelerator.section PART --out DIR.

It imports its modules, then waits for a line with its deadline before it uses a device.
"""

import argparse
import logging
import sys
from pathlib import Path

from launch.bench.accelerator import sizes
from launch.bench.accelerator.parts import measure_part, read_modules, results_directory
from launch.bench.accelerator.record import Record


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--started", type=float, required=True, help="seconds since 1970")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    for noisy in ("absl", "jax", "orbax"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    chosen = sizes.tiny() if arguments.tiny else sizes.published()
    file = results_directory(arguments.out) / f"{arguments.part}.json"
    read_modules(arguments.part)
    deadline = sys.stdin.readline()  # comes when the accelerator is free
    if deadline:
        record = Record(file, float(deadline), arguments.started)
        measure_part(arguments.part, chosen, record, arguments.out)


if __name__ == "__main__":
    main()
