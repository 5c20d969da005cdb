"""Compress documents into a store: files, directories or patterns, of text, PDF, DOCX or HTML.

python -m launch.compress report.pdf notes/ --store memories --checkpoint runs/tiny --ratio 16
python -m launch.compress src --store memories --checkpoint RUN --ratio 16 --ratio '*.py=4'
"""

import sys

from lclm_jax.cli import add_checkpoint_argument, make_parser, path, ratio_rule, run, setting
from lclm_jax.config.settings import Size
from lclm_jax.data.inputs.files import Rejection
from lclm_jax.errors import UserError
from lclm_jax.inference.language_model import load
from lclm_jax.inference.store import Store
from lclm_jax.progress import track


def main():
    parser = make_parser(__doc__)
    parser.add_argument("sources", nargs="+", metavar="FILES")
    parser.add_argument("--store", type=path, required=True, metavar="DIR")
    add_checkpoint_argument(parser, "a training run or a converted checkpoint")
    parser.add_argument(
        "--ratio",
        type=ratio_rule,
        action="append",
        default=[],
        metavar="[PATTERN=]N",
        help="tokens per latent, also for some files: --ratio 16 --ratio '*.py=4'; repeatable",
    )
    parser.add_argument(
        "--window", type=setting(Size), help="tokens per window; 512 as the paper's agent has"
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "int8"),
        help="of the stored latents; by default the model's",
    )
    arguments = parser.parse_args()

    store = Store(arguments.store, load(arguments.checkpoint), arguments.precision)
    added = 0
    ratios = dict(sorted(arguments.ratio, key=lambda rule: rule[0] != "*"))
    for result in store.add_all(arguments.sources, ratios, arguments.window, track):
        if isinstance(result, Rejection):
            sys.stderr.write(f"left out: {result.file}: {result.detail}\n")
            continue
        added += 1
        sys.stdout.write(
            f"{result.entry.name}: {result.tokens} tokens as {len(result)} latents; "
            f"{result.encoded} windows encoded, {result.reused} known\n"
        )
    if not added:
        raise UserError("no document was added")


if __name__ == "__main__":
    run(main)
