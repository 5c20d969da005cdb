"""Answer a prompt about a long text that the model reads as latents.

python -m launch.generate --checkpoint runs/tiny --context notes.txt --prompt "Who wrote them?"
"""

import sys

from lclm_jax.cli import add_checkpoint_argument, make_parser, path, run, setting
from lclm_jax.config.settings import Size
from lclm_jax.errors import UserError
from lclm_jax.files.reading import read_text_or_stdin
from lclm_jax.inference.language_model import load
from lclm_jax.inference.sampling import Sampling


def main():
    parser = make_parser(__doc__)
    add_checkpoint_argument(parser, "a training run or a converted checkpoint")
    parser.add_argument(
        "--context", type=path, required=True, help="text file to compress; - reads standard input"
    )
    parser.add_argument("--prompt", required=True, help="question or instruction about the text")
    parser.add_argument("--max-tokens", type=setting(Size), default=64)
    parser.add_argument(
        "--temperature", type=float, default=Sampling.temperature, help="0 is greedy"
    )
    parser.add_argument("--top-p", type=float, default=Sampling.top_p)
    parser.add_argument("--top-k", type=int, default=Sampling.top_k)
    parser.add_argument("--repetition-penalty", type=float, default=Sampling.repetition_penalty)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    text = read_text_or_stdin(arguments.context)
    if not arguments.prompt.isprintable() and "\udc80" <= max(arguments.prompt) <= "\udcff":
        raise UserError("--prompt is not UTF-8 text; call this in a terminal that writes UTF-8")
    sampling = Sampling(
        arguments.temperature, arguments.top_k, arguments.top_p, arguments.repetition_penalty
    )

    model = load(arguments.checkpoint)
    latents = model.compress(text)
    sys.stderr.write(f"{latents.tokens} tokens read as {len(latents)} latents\n")
    prompt = [latents, "\n" + arguments.prompt]
    answer = model.generate(prompt, arguments.max_tokens, sampling, arguments.seed)
    sys.stdout.write(f"{answer}\n")


if __name__ == "__main__":
    run(main)
