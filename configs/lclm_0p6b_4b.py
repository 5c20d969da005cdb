"""The published LCLM: Qwen3-Embedding-0.6B reads, Qwen3-4B-Instruct-2507 answers, 16 tokens a latent (paper, Table 1).

    python -m launch.train --config configs/lclm_0p6b_4b.py --set data.directory=DIR --set run.directory=DIR

Hardware: a v5p-128 slice or larger (256 rows of 16,384 positions a step). `--set model.compression.ratio=8` or 4 gives
the other two published models.
"""

from configs.shapes import QWEN3_4B_INSTRUCT_2507, QWEN3_EMBEDDING_0P6B, with_memory_tokens
from lclm_jax.config import CompressionConfig, Config, Group, ModelConfig, StageConfig, Stream

BATCH_TOKENS = 256 * 16384  # decoder positions of a global batch

PRETRAINING = (
    Stream("interleaved", "web", 20.37),
    Stream("interleaved", "code", 16.90),
    Stream("interleaved", "reasoning", 17.17),
    Stream("interleaved", "long", 2.84),
    Stream("sft", "instructions", 25.49),
    Stream("reconstruction", "web", 17.23),
)
FINE_TUNING = (
    Stream("sft", "reasoning", 17.88),
    Stream("sft", "long", 49.16),
    Stream("sft", "instructions", 20.91),
    Stream("reconstruction", "web", 12.05),
)


def stage(name: str, tokens: float, warmup: int, rates: tuple, streams: tuple[Stream, ...]) -> StageConfig:
    """A stage that reads `tokens` decoder positions; rates of adapter, encoder and decoder, None where frozen."""
    names = ("adapter", "encoder", "decoder")
    groups = tuple(Group(f"{part}/.*", rate, 0.0 if part == "decoder" else 0.01) for part, rate in zip(names, rates, strict=True))
    return StageConfig(name, int(tokens // BATCH_TOKENS), groups, streams, warmup)


def config() -> Config:
    return Config(
        model=ModelConfig(
            encoder=QWEN3_EMBEDDING_0P6B,
            decoder=with_memory_tokens(QWEN3_4B_INSTRUCT_2507),
            compression=CompressionConfig(ratio=16, window=1024),
        ),
        stages=(
            stage("adapter", 21.29e9, 250, (1e-3, None, None), PRETRAINING),
            stage("encoder", 42.58e9, 500, (6e-5, 6e-5, None), PRETRAINING),
            stage("decoder", 100.08e9, 1000, (6e-5, 6e-5, 1e-5), PRETRAINING),
            stage("sft", 21.32e9, 500, (3e-5, 3e-5, 3e-5), FINE_TUNING),
        ),
    )
