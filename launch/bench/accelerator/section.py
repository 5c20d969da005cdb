"""The process of one part: python -m launch.bench.accelerator.section PART --out DIR ...

It reads its modules, then waits for a line with its deadline before it uses a device.
"""

import argparse
import logging
import sys
import traceback
from pathlib import Path

from launch.bench.accelerator import sizes
from launch.bench.accelerator.parts import read_modules, results_directory, run_part
from launch.bench.accelerator.record import Record


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--begun", type=float, required=True, help="seconds since 1970")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    for noisy in ("absl", "jax", "orbax"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    chosen = sizes.tiny() if arguments.tiny else sizes.published()
    file = results_directory(arguments.out) / f"{arguments.part}.json"
    read_modules(arguments.part)
    told = sys.stdin.readline()  # the deadline, when the accelerator is free
    if not told:
        return 0
    record = Record(file, float(told), arguments.begun)
    try:
        run_part(arguments.part, chosen, record, arguments.out)
    except Exception:  # noqa: BLE001 - whatever it is, it belongs into the part's file
        record.fail("the part itself", traceback.format_exc())
    record.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
