"""Show prepared data as training reads it: python -m launch.inspect_data DIR [--json FILE].

Writes DIR/inspect.html: examples with contexts and trained text in colour, lengths, shares beside
the recipe's, and the fill of packed rows. Ratio, window and budgets are those of a config:
--config, and --set model.compression.ratio=4. With --verify it only compares every file of prepared
data, or of a run's checkpoints, with its sha256.
"""

import json
import sys

from lclm_jax.checkpoint.integrity import verify
from lclm_jax.cli import add_config_arguments, make_parser, path, run, setting
from lclm_jax.config.settings import Size
from lclm_jax.data.loading.survey import DEFAULT_ROWS, open_prepared, sample_records, survey
from lclm_jax.experiment import load_experiment
from lclm_jax.files.atomic import write_whole
from lclm_jax.progress import track
from lclm_jax.reports.data import write_page

EXAMPLES_PER_STREAM = 3
PACKING = (
    "{rows} rows of {positions} positions and {windows} windows: {positions_fill:.1%} and "
    "{windows_fill:.1%} full; suggested: --set {suggestion}"
)


def main():
    parser = make_parser(__doc__)
    parser.add_argument("directory", type=path, help="prepared data; with --verify also a run")
    add_config_arguments(parser, default="configs/lclm_0p6b_4b_16x.py")
    parser.add_argument("--json", type=path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--html", type=path, metavar="FILE", help="default: DIR/inspect.html")
    rows_help = "rows to pack (default: %(default)s)"
    parser.add_argument("--rows", type=setting(Size), default=DEFAULT_ROWS, help=rows_help)
    parser.add_argument("--verify", action="store_true", help="only compare sha256 of all files")
    arguments = parser.parse_args()

    if arguments.verify:
        verified = verify(arguments.directory, track)
        sys.stdout.writelines(f"step {name} has no checksums\n" for name in verified.unlisted)
        sys.stdout.write(f"{verified.files} files are as they were written\n")
        return
    config = load_experiment(arguments.config, arguments.set).config
    stage = open_prepared(config, arguments.directory)
    figures = survey(stage, arguments.rows, track)
    if arguments.json:
        write_whole(arguments.json, json.dumps(figures, indent=2))
    html = arguments.html or arguments.directory / "inspect.html"
    examples = list(sample_records(stage, EXAMPLES_PER_STREAM))
    write_page(html, figures, examples, stage.tokenizer, stage.config.model)
    sys.stdout.write(PACKING.format(**figures["packing"]) + f"\nwrote {html.resolve()}\n")


if __name__ == "__main__":
    run(main)
