"""Compare lclm_jax with plain PyTorch code of the same shapes on a CPU.

    make bench, or python -m launch.bench (needs torch)

The steps are training, encoding, the first token, decoding and reading plain text. Both
implementations have the same weights, read the same arrays, compute in float32 and use all cores.
Before anything is timed they must agree on the loss, the latents, the logits of the first token and
the answer. In every round each step is timed in torch and right after it in lclm_jax, and a ratio
compares such a pair, so that other load on the machine affects both.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from rich.table import Table

from launch.bench.torch_side import TorchSide
from launch.bench.work import Sizes, Work, make_work, needed_flops, sizes
from lclm_jax.cli import make_parser, path, run, setting, show_table
from lclm_jax.config.settings import Size
from lclm_jax.data.records import Plain
from lclm_jax.data.synthetic.corpus import train_tokenizer
from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.distributed.sharding import one_device
from lclm_jax.errors import UserError
from lclm_jax.inference.generation import continue_tokens, prefill
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.model.params import flatten, init_params
from lclm_jax.progress import track
from lclm_jax.training.state import begin_stage
from lclm_jax.training.step import objective, train_step
from lclm_jax.typing import Array, Params

# Least speed relative to torch.
AIMS = {
    "train step": 1.3,
    "encode": 1.3,
    "first token": 1.3,
    "decode": 2.0,
    "plain text": 1.0,
}
TOLERANCE = 1e-4
MATMUL_SIZE = 2048  # rows and columns; the best speed of this product counts as the machine's peak
# The other implementation's threads spin for a while after a call; they must not be timed.
PAUSE_SECONDS = 0.1


class Side(Protocol):
    """An implementation. Each step method prepares a step and returns the function to time."""

    def train(self) -> Callable[[], Any]: ...
    def encode(self) -> Callable[[], Any]: ...
    def first_token(self) -> Callable[[], Any]: ...
    def decode(self) -> Callable[[], Any]: ...
    def plain_text(self) -> Callable[[], Any]: ...
    def results(self) -> dict[str, np.ndarray]: ...


class JaxSide:
    """lclm_jax, called as training and its users call it."""

    def __init__(self, work: Work, params: Params, tokenizer: Tokenizer):
        self.work, self.params = work, params
        self.tokens = np.asarray(work.windows.tokens).reshape(-1)
        self.model = LanguageModel(work.model, params, tokenizer)
        (stage,) = work.config.stages
        self.mesh = one_device()
        self.step = jax.jit(partial(train_step, config=work.config, stage=stage), donate_argnums=0)
        with jax.set_mesh(self.mesh):
            self.state = begin_stage(
                jax.tree.map(jnp.copy, params), work.config, stage, self.mesh
            )  # a step donates its state

    def train(self) -> Callable[[], Any]:
        def step():
            with jax.set_mesh(self.mesh):
                self.state, metrics = self.step(self.state, self.work.batch)
            return jax.block_until_ready((self.state, metrics))

        return step

    def encode(self) -> Callable[[], Any]:
        return lambda: self.model.compress_tokens(self.tokens).block_until_ready()

    def first_token(self) -> Callable[[], Any]:
        return lambda: self.model.complete_records([self.work.prompt], max_tokens=1)

    def decode(self) -> Callable[[], Any]:
        logits, lengths, cache = jax.block_until_ready(self.prefill())
        inputs = (logits, lengths, cache, self.work.model, self.work.answer)
        return lambda: continue_tokens(self.model.weights, *inputs)[0]

    def prefill(self) -> tuple[Array, Array, Any]:
        """Return logits, length and cache of the prompt; decoding consumes the cache."""
        prompt = self.model.read([self.work.prompt])
        with jax.set_mesh(self.mesh):
            inputs = (prompt, self.work.model, self.work.answer)
            logits, cache = prefill(self.model.weights, *inputs)
        return logits, jnp.asarray(prompt.lengths), cache

    def plain_text(self) -> Callable[[], Any]:
        """Compute the logits of the first token after a text that is read without compression."""
        prompt = self.model.read([[Plain(self.work.text)]])

        def read() -> Any:
            with jax.set_mesh(self.mesh):
                return jax.block_until_ready(prefill(self.model.weights, prompt, self.work.model))

        return read

    def results(self) -> dict[str, np.ndarray]:
        loss, _ = jax.jit(partial(objective, frozen={}, config=self.work.config))(
            flatten(self.params), batch=self.work.batch
        )
        logits, _, _ = self.prefill()
        return {
            "loss": np.asarray(loss),
            "latents": self.encode()().vectors,
            "first scores": np.asarray(logits),
            "answer": self.decode()(),
            "scores after plain text": np.asarray(self.plain_text()()[0]),
        }


def prepare(sizes: Sizes) -> tuple[Work, JaxSide, TorchSide]:
    """Return the inputs and both implementations with the same random weights."""
    tokenizer = train_tokenizer(["benchmark"], 512)
    work = make_work(sizes, tokenizer)
    params = init_params(work.model, one_device(), seed=0)
    return work, JaxSide(work, params, tokenizer), TorchSide(work, params)


def check_agreement(jax_side: Side, torch_side: Side) -> dict[str, float]:
    """Return the largest difference of each result, as a share of its largest value.

    Raises UserError if one of them exceeds TOLERANCE.
    """
    expected = torch_side.results()
    differences = {}
    for name, result in jax_side.results().items():
        difference = np.max(np.abs(result - expected[name]))
        differences[name] = float(difference / np.max(np.abs(result)))
    if max(differences.values()) > TOLERANCE:
        raise UserError(
            f"expected both sides to agree to {TOLERANCE} before they are timed, "
            f"they differ by {differences}"
        )
    return differences


@dataclass(frozen=True)
class Figures:
    """Seconds of a step in every round."""

    torch: list[float]
    lclm_jax: list[float]

    @property
    def ratios(self) -> list[float]:
        """Speed relative to torch, pair by pair."""
        pairs = zip(self.torch, self.lclm_jax, strict=True)
        return [torch_seconds / jax_seconds for torch_seconds, jax_seconds in pairs]


def measure(jax_side: Side, torch_side: Side, rounds: int) -> tuple[dict[str, Figures], float]:
    """Return the seconds of every step, and the machine's peak.

    The peak is the most FLOPs per second that a matrix product reached in any round. A first round
    warms up and is not counted.
    """
    calls = {
        "train step": "train",
        "encode": "encode",
        "first token": "first_token",
        "decode": "decode",
        "plain text": "plain_text",
    }
    figures, peak = {name: Figures([], []) for name in calls}, 0.0
    for i in track(range(rounds + 1), "rounds"):
        peak = max(peak, *(2 * MATMUL_SIZE**3 / timed(product) for product in products()))
        for name, method in calls.items():
            sides = (figures[name].torch, torch_side), (figures[name].lclm_jax, jax_side)
            for seconds, side in sides:
                spent = timed(getattr(side, method)())
                if i:
                    seconds.append(spent)
    return figures, peak


def products() -> Sequence[Callable[[], Any]]:
    """Return the same matrix product in numpy, jax and torch."""
    x = np.ones((MATMUL_SIZE, MATMUL_SIZE), np.float32)
    a, b = jnp.asarray(x), torch.from_numpy(x)
    return (lambda: x @ x), (lambda: (a @ a).block_until_ready()), (lambda: b @ b)


def timed(call: Callable[[], Any]) -> float:
    """Return the seconds of a call."""
    time.sleep(PAUSE_SECONDS)
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def tabulate(figures: dict[str, Figures], flops: dict[str, float], peak: float) -> Table:
    table = Table(
        "step",
        "torch, s",
        "lclm_jax, s",
        "speed relative to torch",
        "aim",
        "met",
        "share of peak: torch",
        "lclm_jax",
    )
    for name, step in figures.items():
        ratio, aim = median(step.ratios), AIMS[name]
        both = (step.torch, step.lclm_jax)
        shares = [f"{flops[name] / median(seconds) / peak:.0%}" for seconds in both]
        spreads = [spread(values) for values in (*both, step.ratios)]
        table.add_row(name, *spreads, f"{aim}", "yes" if ratio >= aim else "no", *shares)
    return table


def spread(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def main():
    parser = make_parser(__doc__)
    parser.add_argument(
        "--rounds", type=setting(Size), default=9, help="pairs of each step (default: %(default)s)"
    )
    parser.add_argument("--json", type=path, help="where to write all figures")
    arguments = parser.parse_args()
    work, jax_side, torch_side = prepare(sizes())
    differences = check_agreement(jax_side, torch_side)
    figures, peak = measure(jax_side, torch_side, arguments.rounds)
    flops = needed_flops(work)
    show_table(tabulate(figures, flops, peak))
    decoding = figures["decode"]
    jax_speed = work.answer / median(decoding.lclm_jax)
    torch_speed = work.answer / median(decoding.torch)
    sys.stdout.write(
        f"{arguments.rounds} rounds, median (min-max); "
        f"load {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores; "
        f"matmul peak {peak / 1e9:.0f} GFLOP/s in float32\n"
        f"decoded tokens per second: lclm_jax {jax_speed:.0f}, torch {torch_speed:.0f}; "
        f"results differ by {max(differences.values()):.1g}\n"
    )
    if arguments.json:
        steps = {
            name: {
                "torch": step.torch,
                "ours": step.lclm_jax,
                "ratios": step.ratios,
                "flops": flops[name],
            }
            for name, step in figures.items()
        }
        arguments.json.write_text(
            json.dumps(
                {"steps": steps, "peak": peak, "differences": differences, "aims": AIMS}, indent=2
            ),
            encoding="utf-8",
        )


if __name__ == "__main__":
    run(main)
