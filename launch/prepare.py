"""Tokenises the sources of a recipe into shards with a manifest; interrupted, it continues when started again.

python -m launch.prepare --recipe configs/recipes/pretraining.py --input web=corpus/*.jsonl.zst --input code=src/ --out DIR

An input is a file, a glob or a directory: JSON lines, JSON lists, CSV, Parquet, ArrayRecord, plain
text, source trees, repositories (one document each; `repository:PATH` says that a directory is
one), or `hf:owner/dataset` where there is a network. Files may be compressed (gz, bz2, xz, zst),
and their content, not their name, says what they are. Of a directory with data files, those of
validation and test splits are left out, as are texts beside them; whatever is found and not read
is listed.

One example in 50 is held out, by a hash of its words. Rows with the same text in the field
`split_group` are held out together; no other field decides that.
"""

import argparse
import logging
import sys
from pathlib import Path

from rich.table import Table

from lclm_jax.cli import path, read_function, run, setting, show_table
from lclm_jax.config import ConfigError, Recipe
from lclm_jax.config.settings import Directory, Size, expand_home
from lclm_jax.config.values import override
from lclm_jax.data.prepare.prepare import prepare
from lclm_jax.data.prepare.shards import REJECTIONS
from lclm_jax.data.text.find_tokenizer import find_tokenizer
from lclm_jax.progress import track


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--recipe", required=True, help="a file in configs/ with a function recipe()"
    )
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="of a source; repeatable, also for one source",
    )
    parser.add_argument(
        "--inputs",
        type=path,
        metavar="DIR",
        help="has the input of every source that has no --input: NAME, or NAME and a suffix",
    )
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="NAME",
        help="leave a source and its streams out; repeatable",
    )
    parser.add_argument("--out", type=path, required=True, help="directory for the shards")
    parser.add_argument(
        "--tokenizer",
        type=setting(Directory),
        help="directory with tokenizer.json, or a hub repository (default: the recipe's)",
    )
    parser.add_argument(
        "--workers", type=setting(Size), help="processes (default: one for each core)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting of the recipe, as most_rejected=50",
    )
    arguments = parser.parse_args()
    recipe = override(read_function(arguments.recipe, "recipe")[0](), *arguments.set)
    for name in arguments.without:
        recipe = recipe.without(name)
    inputs = read_inputs(arguments.input, recipe, arguments.inputs)
    tokenizer = find_tokenizer(arguments.tokenizer or recipe.tokenizer)
    logging.info("tokenizer of %d entries, fingerprint %s", tokenizer.size, tokenizer.fingerprint)
    manifest = prepare(recipe, inputs, arguments.out, tokenizer, arguments.workers, track)
    table = Table("source", "kind", "rows", "examples", "held out", "tokens", "refused", "not read")
    for name, source in manifest["sources"].items():
        refused, unread = (
            ", ".join(f"{count} {reason}" for reason, count in source[name].items()) or "none"
            for name in ("rejected", "unread")
        )
        tokens, examples = sum(source["tokens"].values()), source["examples"]
        table.add_row(
            name,
            source["kind"],
            f"{source['rows']:,}",
            f"{examples['train']:,}",
            f"{examples['held']:,}",
            f"{tokens:,}",
            refused,
            unread,
        )
    show_table(table)
    if any(source["rejected"] or source["unread"] for source in manifest["sources"].values()):
        sys.stdout.write(
            f"every refused row and unread file, with its reason: {arguments.out / REJECTIONS}\n"
        )
    sys.stdout.write(
        f"wrote {arguments.out.resolve()}; look at it by python -m launch.inspect_data {arguments.out}\n"
    )


def read_inputs(
    assignments: list[str], recipe: Recipe, directory: Path | None = None
) -> dict[str, list[str]]:
    """The patterns of every source: those assigned, else what has its name in `directory`.

    Raises ConfigError for a source that is missing or unknown.
    """
    names = [source.name for source in recipe.sources]
    inputs: dict[str, list[str]] = {}
    for assignment in assignments:
        name, equals, pattern = assignment.partition("=")
        if not equals or not pattern:
            raise ConfigError(f"expected --input NAME=PATH, got {assignment!r}")
        if name not in names:
            raise ConfigError(
                f"recipe {recipe.name} has no source {name!r}; its sources are {', '.join(names)}"
            )
        inputs.setdefault(name, []).append(expand_home(pattern))
    if directory is not None:
        found = {
            name: sorted(map(str, [*directory.glob(name), *directory.glob(f"{name}.*")]))
            for name in names
        }
        inputs = {
            name: inputs.get(name) or found[name]
            for name in names
            if inputs.get(name) or found[name]
        }
    missing = [name for name in names if name not in inputs]
    if missing:
        raise ConfigError(
            f"recipe {recipe.name} also reads {', '.join(missing)}; say where they lie by "
            f"{' '.join(f'--input {name}=PATH' for name in missing)}, or leave one out by --without NAME"
        )
    return inputs


if __name__ == "__main__":
    run(main)
