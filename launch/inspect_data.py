"""Shows prepared data as training would read them: python -m launch.inspect_data DIR [--json FILE]

Writes DIR/inspect.html: examples with what is compressed and trained on in colour, lengths, shares beside the recipe's, and the
fill of packed rows. The model decides ratio, window and budgets: --config, and --set model.compression.ratio=4.
With --verify it compares every file of prepared data, or of a run's checkpoints, with its sha256
instead.
"""

import argparse
import json
import sys

from lclm_jax.checkpoint.integrity import verify
from lclm_jax.cli import path, read_config, run, setting
from lclm_jax.config.settings import Size
from lclm_jax.data.loading.survey import DEFAULT_ROWS, open_prepared, sample_records, survey
from lclm_jax.progress import track
from lclm_jax.reports.data import write_page

SHOWN = 3  # examples of each stream on the page


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "directory", type=path, help="what launch.prepare wrote; with --verify also a run"
    )
    parser.add_argument(
        "--config",
        default="configs/lclm_0p6b_4b_16x.py",
        help="whose model and budgets to use (default: %(default)s)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one setting; repeatable",
    )
    parser.add_argument("--json", type=path, metavar="FILE", help="write the figures there too")
    parser.add_argument(
        "--html", type=path, metavar="FILE", help="where the page goes (default: DIR/inspect.html)"
    )
    parser.add_argument(
        "--rows",
        type=setting(Size),
        default=DEFAULT_ROWS,
        help="rows to pack for the fill (default: %(default)s)",
    )
    parser.add_argument(
        "--verify", action="store_true", help="compare every file with its sha256, and nothing else"
    )
    arguments = parser.parse_args()
    if arguments.verify:
        verified = verify(arguments.directory, track)
        unlisted = "".join(f"step {name} has no checksums\n" for name in verified.unlisted)
        sys.stdout.write(f"{unlisted}{verified.files} files are as they were written\n")
        return
    stage = open_prepared(read_config(arguments.config, arguments.set)[0], arguments.directory)
    figures = survey(stage, arguments.rows, track)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")
    html = arguments.html or arguments.directory / "inspect.html"
    samples = list(sample_records(stage, SHOWN))
    write_page(html, figures, samples, stage.tokenizer, stage.config.model)
    packing = figures["packing"]
    sys.stdout.write(
        f"{packing['rows']} rows of {packing['positions']} positions and {packing['windows']} windows: "
        f"{packing['positions_fill']:.1%} and {packing['windows_fill']:.1%} full; "
        f"suggested: --set {packing['suggestion']}\nwrote {html.resolve()}\n"
    )


if __name__ == "__main__":
    run(main)
