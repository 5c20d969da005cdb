"""List, show, verify and clean up a store of compressed documents; launch.compress adds to it.

python -m launch.store ls memories
python -m launch.store show memories report.pdf
python -m launch.store remove memories report.pdf
python -m launch.store verify memories
python -m launch.store gc memories
"""

import sys
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from lclm_jax.cli import make_parser, path, run, show_table
from lclm_jax.errors import UserError
from lclm_jax.inference.store import Store
from lclm_jax.progress import track


def main():
    parser = make_parser(__doc__)
    parser.add_argument("action", choices=sorted(ACTIONS))
    parser.add_argument("store", type=path, metavar="DIR")
    parser.add_argument("document", nargs="?", metavar="NAME", help="for show and remove")
    arguments = parser.parse_args()
    named = arguments.action in ("show", "remove")
    if named != (arguments.document is not None):
        expected = "the name of a document" if named else "no name"
        raise UserError(f"{arguments.action} takes {expected}, got {arguments.document or 'none'}")
    ACTIONS[arguments.action](Store(arguments.store), arguments.document)


def list_documents(store: Store, _: None):
    table = Table()
    table.add_column("document", no_wrap=True)
    for heading in ("ratio", "tokens", "latents", "precision", "model", "added"):
        table.add_column(heading)
    for entry in store.ls():
        numbers = (entry.ratio, entry.tokens, entry.latents)
        model = Path(entry.model_name).name or entry.model_id
        table.add_row(entry.name, *map(str, numbers), entry.precision, model, entry.added)
    show_table(table)


def show(store: Store, document: str):
    for entry in store.show(document):
        for name, value in asdict(entry).items():
            sys.stdout.write(f"{name:<12}{value}\n")


def remove(store: Store, document: str):
    sys.stdout.write(f"removed {store.remove(document)} entries; gc frees their windows\n")


def verify(store: Store, _: None):
    if problems := store.verify(track):
        raise UserError(f"{len(problems)} problems in {store.directory}:\n" + "\n".join(problems))
    sys.stdout.write("every object is as it was written\n")


def clean_up(store: Store, _: None):
    cleaned = store.gc(track)
    sys.stdout.write(f"removed {cleaned.removed} objects, {cleaned.needed} are needed\n")


ACTIONS = {
    "ls": list_documents,
    "show": show,
    "remove": remove,
    "verify": verify,
    "gc": clean_up,
}


if __name__ == "__main__":
    run(main, cache=False)
