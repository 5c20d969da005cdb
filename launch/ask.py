"""Answer a question about the documents of a store, all of them read as latents.

python -m launch.ask --store memories "What do the reports say about costs?"
"""

import sys

from lclm_jax.cli import make_parser, path, run, setting
from lclm_jax.config.settings import Size
from lclm_jax.inference.language_model import load
from lclm_jax.inference.latents import Latents
from lclm_jax.inference.store import Store, StoredLatents, find_checkpoint


def main():
    parser = make_parser(__doc__)
    parser.add_argument("question")
    parser.add_argument("--store", type=path, required=True, metavar="DIR")
    parser.add_argument(
        "--checkpoint",
        type=path,
        metavar="DIR",
        help="by default the model that compressed the documents",
    )
    parser.add_argument(
        "--document",
        action="append",
        metavar="NAME",
        help="read only this document; repeatable",
    )
    parser.add_argument("--ratio", type=setting(Size), help="where documents have several")
    parser.add_argument("--max-tokens", type=setting(Size), default=256)
    arguments = parser.parse_args()

    checkpoint = arguments.checkpoint or find_checkpoint(arguments.store)
    store = Store(arguments.store, load(checkpoint))
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
