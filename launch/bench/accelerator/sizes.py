"""Shapes to measure: the published ones, or tiny ones that a CPU computes in seconds."""

from dataclasses import dataclass, replace

from configs.lclm_0p6b_4b_16x import config as published_config
from configs.models.shapes import QWEN3_1P7B, with_memory_tokens
from lclm_jax.config import (
    CompressionConfig,
    Config,
    DataConfig,
    ModelConfig,
    ParameterGroup,
    RunConfig,
    StageConfig,
    TransformerConfig,
)


@dataclass(frozen=True)
class TrainingCase:
    """A model and the components that a training step trains."""

    name: str
    model: ModelConfig
    trained: tuple[str, ...]  # components among encoder, adapter and decoder

    def config(self, positions: int, windows: int) -> Config:
        """Return a configuration with one row per step."""
        names = ("encoder", "adapter", "decoder")
        groups = tuple(
            ParameterGroup(f"{x}/.*", 1e-4 if x in self.trained else None) for x in names
        )
        stage = StageConfig("bench", steps=1000, groups=groups, streams=(), warmup_steps=1)
        data = DataConfig(batch_rows=1, row_positions=positions, row_windows=windows)
        return Config(self.model, (stage,), data, run=RunConfig(loss_chunk=min(1024, positions)))


@dataclass(frozen=True)
class Sizes:
    """All shapes and lengths of the benchmark."""

    tiny: bool
    model: ModelConfig  # inference
    contexts: tuple[int, ...]  # tokens of the compressed texts
    more_contexts: tuple[int, ...]  # measured after `contexts`
    other_ratios: tuple[int, ...]
    other_contexts: tuple[int, ...]  # tokens compressed at `other_ratios`
    plain: tuple[int, ...]  # tokens read without compression
    question: int  # tokens after the context
    middle: int  # tokens of the context in comparisons and in decoding
    cases: tuple[TrainingCase, ...]
    remats: tuple[str, ...]  # values of ModelConfig.remat, the least memory first
    positions: int  # of the training row
    windows: int  # of the training row
    batches: tuple[int, ...]  # rows decoded together
    answer: int  # tokens decoded beside PyTorch
    product: int  # rows and columns of the largest matrix product
    copied: int  # bytes of the array that the memory test copies
    attention: tuple[tuple[str, int, int, TransformerConfig], ...]  # name, rows, length, tower
    lengths: tuple[int, ...]  # row lengths of the attention checks
    heads: tuple[int, int, int]  # query heads, key heads and head width of these checks

    @property
    def room(self) -> int:
        """Cache positions for the answer; all parts use the same, so that they share programs."""
        return self.answer


def published() -> Sizes:
    """Return the shapes of the paper's model, 0.6B and 4B, at its context lengths."""
    model = published_config().model
    small = replace(model, decoder=with_memory_tokens(QWEN3_1P7B))
    every = ("encoder", "adapter", "decoder")
    k = 1024
    return Sizes(
        tiny=False,
        model=model,
        contexts=(64 * k, 1024 * k, 4 * k),
        more_contexts=(256 * k, 16 * k, 128 * k, 512 * k),
        other_ratios=(8, 4),
        other_contexts=(64 * k, 256 * k),
        plain=(4 * k, 16 * k, 64 * k, 128 * k, 256 * k, 512 * k),
        question=62,
        middle=64 * k,
        cases=(
            TrainingCase("0.6B + 4B, decoder frozen", model, every[:2]),
            TrainingCase("0.6B + 1.7B, all trained", small, every),
            TrainingCase("0.6B + 4B, all trained", model, every),
        ),
        remats=("attention", "dots"),
        positions=16 * k,
        windows=14,
        batches=(1, 8, 32),
        answer=64,
        product=8192,
        copied=2 * 2**30,
        attention=(
            ("encoder, 16 windows", 16, k, model.encoder),
            ("decoder, row of one example", 1, 16 * k, model.decoder),
            ("decoder, packed row", 1, 16 * k, model.decoder),
        ),
        lengths=(1000, 777, 2048, 2561),
        heads=(8, 2, 128),
    )


def tiny() -> Sizes:
    """Return shapes that a CPU can run."""
    tower = {"vocab": 512, "head_dim": 16, "kv_heads": 2, "heads": 4, "initializer_range": 0.02}
    encoder = TransformerConfig(width=32, layers=2, mlp=64, **tower)
    decoder = TransformerConfig(width=48, layers=2, mlp=96, **tower)
    compression = CompressionConfig(ratio=16, window=64)
    model = ModelConfig(encoder, decoder, compression, dtype="float32", remat="none")
    return Sizes(
        tiny=True,
        model=model,
        contexts=(128, 512),
        more_contexts=(256,),
        other_ratios=(8,),
        other_contexts=(128,),
        plain=(128, 256),
        question=14,
        middle=512,
        cases=(TrainingCase("all trained", model, ("encoder", "adapter", "decoder")),),
        remats=("none",),
        positions=512,
        windows=5,
        batches=(1, 2),
        answer=8,
        product=256,
        copied=2**20,
        attention=(("decoder, packed row", 1, 512, decoder),),
        lengths=(100,),
        heads=(4, 2, 16),
    )
