"""The inputs that `launch.bench` times, and the FLOPs they need.

They are a model, a packed row, encoder windows, a prompt and the length of its answer.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lclm_jax.batch import Batch, Windows
from lclm_jax.config import (
    CompressionConfig,
    Config,
    ModelConfig,
    ParameterGroup,
    RunConfig,
    StageConfig,
    TransformerConfig,
)
from lclm_jax.costs.work import Flops, adapter_flops, layer_flops
from lclm_jax.data.loading import RowBudget, assemble, fill_row
from lclm_jax.data.records import Context, Example, Plain, Span, lay_out
from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.inference.compressor import WINDOWS_AT_ONCE
from lclm_jax.typing import Array

# Examples of the row: tokens before the context and trained tokens after it, each as a share of the
# row's positions, and the length of the context in windows.
EXAMPLES = ((0.03, 0.24, 1.6), (0.03, 0.13, 0.35), (0.03, 0.2, 1.0), (0.03, 0.16, 0.8))


@dataclass(frozen=True)
class Sizes:
    """Shapes of the model and its inputs."""

    model: ModelConfig
    positions: int = 2048  # decoder positions of the row
    windows: int = 4  # encoder windows of the row
    context: int = 8  # windows of the prompt's context
    question: int = 62  # tokens of the prompt after its context
    answer: int = 64  # tokens
    text: int = 16_434  # tokens of a prompt that is read without compression


def sizes() -> Sizes:
    """Return the published shapes, scaled down.

    The encoder is half as wide as the decoder, queries are grouped, and the MLPs are 3 and 3.75
    times as wide as the residual stream. Encoder and decoder read the same number of positions, and
    a row packs several examples.
    """
    common: dict[str, Any] = {"vocab": 16384, "head_dim": 64, "initializer_range": 0.02}
    encoder = TransformerConfig(**common, width=256, layers=4, heads=8, kv_heads=4, mlp=768)
    decoder = TransformerConfig(**common, width=512, layers=4, heads=12, kv_heads=3, mlp=1920)
    return Sizes(
        ModelConfig(
            encoder, decoder, CompressionConfig(ratio=8, window=512), dtype="float32", remat="dots"
        )
    )


@dataclass(frozen=True)
class Work:
    """The inputs of both implementations."""

    config: Config
    batch: Batch  # one packed row
    windows: Windows  # WINDOWS_AT_ONCE full windows
    prompt: list[Span]  # a context of whole windows and a question
    context: Windows  # windows of the prompt's context
    asked: Example  # the prompt as the decoder reads it
    answer: int  # tokens to decode after the prompt
    # A prompt that is read without compression.
    text: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))

    @property
    def model(self) -> ModelConfig:
        return self.config.model


def make_work(sizes: Sizes, tokenizer: Tokenizer, seed: int = 0) -> Work:
    """Return inputs of random tokens, packed as in training; all components are trained."""
    rng, model = np.random.default_rng(seed), sizes.model
    window = model.compression.window

    def tokens(count: float) -> np.ndarray:
        return rng.integers(0, model.decoder.vocab, int(count)).astype(np.int32)

    def pack(records: list[list[Span]], positions: int, windows: int) -> Batch:
        examples = [lay_out(record, model, tokenizer.memory) for record in records]
        return assemble([fill_row(RowBudget.for_model(model, positions, windows), examples)])

    row: list[list[Span]] = [
        [
            Plain(tokens(before * sizes.positions)),
            Context(tokens(context * window)),
            Plain(tokens(trained * sizes.positions), trained=True),
        ]
        for before, trained, context in EXAMPLES
    ]
    rates = tuple(ParameterGroup(f"{part}/.*", 1e-4) for part in ("encoder", "adapter", "decoder"))
    stage = StageConfig("bench", steps=1000, groups=rates, streams=(), warmup_steps=1)
    full: list[Span] = [Context(tokens(WINDOWS_AT_ONCE * window))]
    prompt: list[Span] = [Context(tokens(sizes.context * window)), Plain(tokens(sizes.question))]
    return Work(
        Config(model, (stage,), run=RunConfig(loss_chunk=512)),
        pack(row, sizes.positions, sizes.windows),
        pack([full], WINDOWS_AT_ONCE * window, WINDOWS_AT_ONCE).windows,
        prompt,
        pack([prompt], sizes.context * window, sizes.context).windows,
        lay_out(prompt, model, tokenizer.memory),
        sizes.answer,
        tokens(sizes.text),
    )


def needed_flops(work: Work) -> dict[str, float]:
    """Return the FLOPs that each step needs at least.

    Attention is counted within examples only, and logits at trained positions only.
    """
    model, batch = work.model, work.batch
    encoder, decoder = model.encoder, model.decoder
    head = Flops(2.0 * decoder.width * decoder.vocab)

    def read_all(config: TransformerConfig, segments: Array) -> Flops:
        lengths = [
            count
            for row in segments.reshape(-1, segments.shape[-1])
            for count in np.bincount(row)[1:].tolist()
        ]
        return sum((layer_flops(config, length) for length in lengths), Flops())

    forward = read_all(encoder, batch.windows.segments) + read_all(decoder, batch.segments)
    forward += adapter_flops(model, int((batch.slots >= 0).sum())) + head.scale(
        float(batch.weights.sum())
    )
    windows, latents, length = (
        work.context.tokens.shape[1],
        int((work.asked.slots >= 0).sum()),
        len(work.asked),
    )
    encode = layer_flops(encoder, model.compression.window)
    first = (
        encode.scale(windows) + adapter_flops(model, latents) + layer_flops(decoder, length) + head
    )
    after = length + work.answer - 1
    longer, shorter = layer_flops(decoder, after), layer_flops(decoder, length)
    answer = longer + shorter.scale(-1.0) + head.scale(work.answer - 1)
    steps = {"train step": forward.scale(3), "encode": encode.scale(work.windows.tokens.shape[1])}
    steps |= {"first token": first, "decode": answer}
    steps |= {"plain text": layer_flops(decoder, len(work.text)) + head}
    return {name: flops.total for name, flops in steps.items()}
