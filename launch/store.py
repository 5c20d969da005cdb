"""List, show, verify and clean up a store of compressed documents; launch.compress adds to it.

python -m launch.store ls memories
python -m launch.store show memories report.pdf
python -m launch.store remove memories report.pdf
python -m launch.store verify memories
python -m launch.store gc memories
"""

import sys
from dataclasses import asdict

from lclm_jax.cli import make_parser, path, run, show_table
from lclm_jax.errors import UserError
from lclm_jax.inference.store import Store
from lclm_jax.progress import track
from lclm_jax.reports.terminal import tabulate_documents

NAMED = ("show", "remove")  # actions on one document


def main():
    parser = make_parser(__doc__)
    parser.add_argument("action", choices=("ls", *NAMED, "verify", "gc"))
    parser.add_argument("store", type=path, metavar="DIR")
    parser.add_argument("document", nargs="?", metavar="NAME", help="for show and remove")
    arguments = parser.parse_args()
    action, document = arguments.action, arguments.document
    if (action in NAMED) != (document is not None):
        expected = "the name of a document" if action in NAMED else "no name"
        raise UserError(f"{action} takes {expected}, got {document or 'none'}")

    store = Store(arguments.store)
    if action == "ls":
        show_table(tabulate_documents([asdict(entry) for entry in store.ls()]))
    elif action == "show":
        for entry in store.show(document):
            lines = (f"{name:<12}{value}\n" for name, value in asdict(entry).items())
            sys.stdout.write("".join(lines))
    elif action == "remove":
        sys.stdout.write(f"removed {store.remove(document)} entries; gc frees their windows\n")
    elif action == "verify":
        if problems := store.verify(track):
            listed = "\n  ".join(problems)
            raise UserError(f"{len(problems)} problems in {store.directory}:\n  {listed}")
        sys.stdout.write("every object is as it was written\n")
    else:
        cleaned = store.gc(track)
        removed = f"{cleaned.removed} objects and {cleaned.unfinished} unfinished files"
        sys.stdout.write(f"removed {removed}; {cleaned.needed} objects are needed\n")


if __name__ == "__main__":
    run(main, cache=False)
