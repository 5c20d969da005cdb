"""Answers a prompt about a long text that is read compressed.

python -m launch.generate --checkpoint runs/tiny --context notes.txt --prompt "Repeat the text above word for word."
"""

import argparse
import sys
from pathlib import Path

from lclm_jax.cli import path, run, setting
from lclm_jax.config.settings import Size
from lclm_jax.errors import UserError
from lclm_jax.files.reading import decode, read_text
from lclm_jax.inference.language_model import load
from lclm_jax.inference.sampling import Sampling


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", type=path, required=True, help="a training run or a converted checkpoint"
    )
    parser.add_argument(
        "--context", type=path, required=True, help="text file to compress; - reads standard input"
    )
    parser.add_argument("--prompt", required=True, help="what to ask about it")
    parser.add_argument("--max-tokens", type=setting(Size), default=64)
    parser.add_argument(
        "--temperature", type=float, default=Sampling.temperature, help="0 is greedy"
    )
    parser.add_argument("--top-p", type=float, default=Sampling.top_p)
    parser.add_argument("--top-k", type=int, default=Sampling.top_k)
    parser.add_argument("--repetition-penalty", type=float, default=Sampling.repetition_penalty)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    text = read_context(arguments.context)
    if not arguments.prompt.isprintable() and "\udc80" <= max(arguments.prompt) <= "\udcff":
        raise UserError("--prompt is not UTF-8 text; call this in a terminal that writes UTF-8")
    sampling = Sampling(
        arguments.temperature, arguments.top_k, arguments.top_p, arguments.repetition_penalty
    )
    model = load(arguments.checkpoint)
    latents = model.compress(text)
    sys.stderr.write(f"{latents.tokens} tokens read as {len(latents)} latents\n")
    sys.stdout.write(
        model.generate(
            [latents, "\n" + arguments.prompt], arguments.max_tokens, sampling, arguments.seed
        )
        + "\n"
    )


def read_context(file: Path) -> str:
    """The text to be compressed; of standard input where the file is `-`."""
    if file == Path("-"):
        return decode(sys.stdin.buffer.read(), "standard input")
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: no such file; --context takes a text file, or - for standard input"
        )
    return read_text(file)


if __name__ == "__main__":
    run(main)
