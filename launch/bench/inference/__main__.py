"""Measure what compression, stores, kept caches and batches save, in one run on any device.

    make bench-inference, or python -m launch.bench.inference --out DIR

Sections: first_token, questions, agent, batches, long_text and store. Each part of a section is a
process of its own, so a failure costs only that part. Writes index.html, pictures, inference.json
and the measurements to DIR. Run again with the same DIR, it measures only what is missing. Weights
are random: on a CPU those of a small model, on an accelerator those of the published shapes.
"""

import time
from pathlib import Path

from launch.bench.accelerator.parent import check_directory, find_platform
from launch.bench.accelerator.report import report
from launch.bench.inference.page import write_page
from launch.bench.inference.parts import SECTIONS, choose_parts, run_parts
from launch.bench.inference.plan import Plan
from launch.bench.inference.sizes import published, small, tiny
from launch.bench.inference.summary import show_figures, write_summary
from lclm_jax.cli import make_parser, path, run, setting
from lclm_jax.config.settings import Positive


def main():
    started = time.time()
    parser = make_parser(__doc__)
    parser.add_argument("--out", type=path, default=Path("runs/bench-inference"), metavar="DIR")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="(default: %(default)s)")
    parser.add_argument(
        "--limit",
        type=setting(Positive),
        default=60.0,
        metavar="SECONDS",
        help="of a first token or of making a store; what would take longer, extrapolated from "
        "the size before, is left out (default: %(default)s)",
    )
    parser.add_argument("--tiny", action="store_true", help="tiny models and texts, in seconds")
    arguments = parser.parse_args()
    platform = find_platform()
    sizes = tiny() if arguments.tiny else small() if platform == "cpu" else published()
    parts = choose_parts([name.strip() for name in arguments.sections.split(",")])
    check_directory(arguments.out, {"shapes": sizes.name, "platform": platform})
    report(f"{platform}, {sizes.name} shapes, in {arguments.out}", started)
    run_parts(Plan(arguments.out, sizes, arguments.limit, started), parts)
    summary = write_summary(arguments.out, sizes)
    show_figures(summary)
    report(f"the page is {write_page(arguments.out, summary)}", started)


if __name__ == "__main__":
    run(main)
