"""Tokenize the sources of a recipe into shards with a manifest; an interrupted run continues.

python -m launch.prepare --recipe RECIPE --input web=corpus/*.jsonl.zst --input code=src --out DIR

An input is a file, a glob or a directory: JSON lines, JSON lists, CSV, Parquet, ArrayRecord, plain
text, source trees, repositories (one document each; `repository:PATH` marks a directory as one), or
`hf:owner/dataset` where there is a network. Files may be compressed (gz, bz2, xz, zst); their
content decides the format, not their name. In a directory with data files, those of validation and
test splits are left out, and so are plain texts beside them. Every unread file is listed.

One example in 50 is held out, chosen by a hash of its text. Rows with the same `split_group` are
held out together; no other field decides the split.
"""

import logging
import sys

from lclm_jax.cli import (
    add_input_arguments,
    add_set_argument,
    make_parser,
    path,
    run,
    setting,
    show_table,
)
from lclm_jax.config.settings import Directory, Size
from lclm_jax.data.prepare import prepare
from lclm_jax.data.prepare.find_inputs import find_inputs
from lclm_jax.data.prepare.summary import describe_output, summary_table
from lclm_jax.data.text.find_tokenizer import find_tokenizer
from lclm_jax.experiment import load_recipe
from lclm_jax.progress import track


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--recipe", required=True, help="a Python file with a function recipe()")
    add_input_arguments(parser)
    parser.add_argument("--out", type=path, required=True, help="directory for the shards")
    tokenizer_help = "directory with tokenizer.json, or a hub repository (default: the recipe's)"
    parser.add_argument("--tokenizer", type=setting(Directory), help=tokenizer_help)
    parser.add_argument("--workers", type=setting(Size), help="processes (default: one a core)")
    add_set_argument(parser, "change a setting of the recipe, as max_rejected_rows=50")
    arguments = parser.parse_args()

    recipe = load_recipe(arguments.recipe, arguments.set)
    for name in arguments.without:
        recipe = recipe.without(name)
    inputs = find_inputs(arguments.input, recipe, arguments.inputs)
    tokenizer = find_tokenizer(arguments.tokenizer or recipe.tokenizer)
    logging.info("tokenizer %s: %d entries", tokenizer.fingerprint, tokenizer.vocab_size)
    manifest = prepare(recipe, inputs, arguments.out, tokenizer, arguments.workers, track)
    show_table(summary_table(manifest))
    sys.stdout.write(describe_output(manifest, arguments.out))


if __name__ == "__main__":
    run(main)
