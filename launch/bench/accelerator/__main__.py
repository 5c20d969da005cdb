"""Check correctness and measure speed on one accelerator, in at most eight minutes.

    python -m launch.bench.accelerator --minutes 8 --out DIR

Writes index.html, pictures, summary.json and the measurements to DIR. Run again with the same DIR,
it measures only what is missing. On a CPU it uses tiny models, to test the command itself.
"""

import sys
import time
from pathlib import Path

from launch.bench.accelerator.page import write_page
from launch.bench.accelerator.parent import Plan, find_platform, run_parts
from launch.bench.accelerator.parts import SECTIONS
from launch.bench.accelerator.report import report
from launch.bench.accelerator.summary import show_goals, write_summary
from lclm_jax.cli import make_parser, path, run, setting
from lclm_jax.config.settings import Positive


def main():
    started = time.time()
    parser = make_parser(__doc__)
    parser.add_argument("--out", type=path, default=Path("runs/accelerator"), metavar="DIR")
    parser.add_argument(
        "--minutes", type=setting(Positive), default=8.0, help="at most (default: %(default)s)"
    )
    parser.add_argument("--sections", default=",".join(SECTIONS), help="(default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="tiny models, as on a CPU")
    arguments = parser.parse_args()
    platform = find_platform()
    sections = tuple(name.strip() for name in arguments.sections.split(","))
    small = arguments.tiny or platform == "cpu"
    plan = Plan(arguments.out, arguments.minutes, sections, small, platform, started)
    report(f"{platform}, {'tiny models' if small else 'published shapes'}, in {plan.directory}")
    try:
        run_parts(plan)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        report("interrupted; the page shows what was measured until now")
    summary = write_summary(plan.directory)
    show_goals(summary)
    report(f"the page is {write_page(plan.directory, summary)}")


if __name__ == "__main__":
    run(main)
