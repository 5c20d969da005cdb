"""Answer a question about the documents of a store, all of them read as latents.

python -m launch.ask --store memories "What do the reports say about costs?"
"""

import sys

from lclm_jax.cli import add_store_arguments, make_parser, run, setting
from lclm_jax.config.settings import Size
from lclm_jax.inference.latents import Latents
from lclm_jax.inference.store import StoredLatents, open_store


def main():
    parser = make_parser(__doc__)
    parser.add_argument("question")
    add_store_arguments(parser)
    parser.add_argument(
        "--document",
        action="append",
        metavar="NAME",
        help="read only this document; repeatable",
    )
    parser.add_argument("--ratio", type=setting(Size), help="where documents have several")
    parser.add_argument("--max-tokens", type=setting(Size), default=256)
    arguments = parser.parse_args()

    store = open_store(arguments.store, arguments.checkpoint)
    documents = store.read(arguments.document, arguments.ratio)
    parts = name_documents(documents)
    stream = store.model.stream([*parts, f" {arguments.question}"], arguments.max_tokens)
    for piece in stream:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    for name, latents in documents.items():
        sys.stderr.write(f"read: {name}, {latents.tokens} tokens as {len(latents)} latents\n")


def name_documents(documents: dict[str, StoredLatents]) -> list[str | Latents]:
    """Return documents as parts of a prompt, under their names if there are several."""
    if len(documents) == 1:
        return list(documents.values())
    return [part for name, latents in documents.items() for part in (f"{name}:\n", latents, "\n")]


if __name__ == "__main__":
    run(main)
