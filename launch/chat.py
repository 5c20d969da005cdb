"""Chat in the terminal within a budget of positions; older turns become latents.

python -m launch.chat --checkpoint runs/tiny --budget 8192

A line is a turn. "/read FILE" adds a document, as latents, to the next turn; "/quit" ends.
"""

import sys

from lclm_jax.cli import add_checkpoint_argument, make_parser, read_turns, run, setting
from lclm_jax.config.settings import Size
from lclm_jax.errors import UserError
from lclm_jax.inference.chat import Chat
from lclm_jax.inference.documents import read_document
from lclm_jax.inference.language_model import load
from lclm_jax.inference.latents import Latents


def main():
    parser = make_parser(__doc__)
    add_checkpoint_argument(parser, "a training run or a converted checkpoint")
    parser.add_argument("--budget", type=setting(Size), default=8192, help="positions of a prompt")
    parser.add_argument("--system", help="a message before all turns")
    parser.add_argument("--max-tokens", type=setting(Size), default=256, help="of an answer")
    parser.add_argument("--ratio", type=setting(Size), help="of latents; by default the model's")
    given = parser.parse_args()

    model = load(given.checkpoint)
    limits = {"max_tokens": given.max_tokens, "ratio": given.ratio}
    chat = Chat(model, given.budget, given.system, **limits)
    documents: list[Latents] = []
    for turn in read_turns():
        command, _, file = turn.partition(" ")
        try:
            if command == "/read" and not file.strip():
                raise UserError("expected a file after /read")
            if command == "/read":
                latents = model.compress(read_document(file.strip()).text, given.ratio)
                sys.stderr.write(f"{latents.tokens} tokens read as {len(latents)} latents\n")
                documents.append(latents)
                continue
            # Models read a question after a context with a space before it.
            for piece in chat.stream([*documents, f" {turn}" if documents else turn]):
                sys.stdout.write(piece)
                sys.stdout.flush()
            sys.stdout.write("\n")
            sys.stderr.write(f"[{chat.usage}]\n")
            documents = []
        except UserError as error:
            sys.stderr.write(f"error: {error}\n")


if __name__ == "__main__":
    run(main)
