"""Answers a prompt about a long text that is read compressed.

python -m launch.generate --checkpoint runs/tiny --context notes.txt --prompt "Repeat the text above word for word."
"""

import argparse
import sys
from pathlib import Path

from lclm_jax.command import run
from lclm_jax.language_model import load
from lclm_jax.sampling import Sampling


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", required=True, help="a training run or a converted checkpoint"
    )
    parser.add_argument(
        "--context", required=True, help="text file to compress; - reads standard input"
    )
    parser.add_argument("--prompt", required=True, help="what to ask about it")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument(
        "--temperature", type=float, default=Sampling.temperature, help="0 is greedy"
    )
    parser.add_argument("--top-p", type=float, default=Sampling.top_p)
    parser.add_argument("--top-k", type=int, default=Sampling.top_k)
    parser.add_argument("--repetition-penalty", type=float, default=Sampling.repetition_penalty)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.context != "-" and not Path(arguments.context).is_file():
        raise FileNotFoundError(
            f"{arguments.context}: no such file; --context takes a text file, or - for standard input"
        )
    text = (
        sys.stdin.read()
        if arguments.context == "-"
        else Path(arguments.context).read_text(encoding="utf-8")
    )
    model = load(arguments.checkpoint)
    latents = model.compress(text)
    sys.stderr.write(f"{latents.tokens} tokens read as {len(latents)} latents\n")
    sampling = Sampling(
        arguments.temperature, arguments.top_k, arguments.top_p, arguments.repetition_penalty
    )
    sys.stdout.write(
        model.generate(
            [latents, "\n" + arguments.prompt], arguments.max_tokens, sampling, arguments.seed
        )
        + "\n"
    )


if __name__ == "__main__":
    run(main)
