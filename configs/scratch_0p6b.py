"""The paper's search for an architecture: Qwen3-0.6B on both sides, random, everything trained from the first step, 16x.

    python -m launch.train --config configs/scratch_0p6b.py --set data.directory=DATA --set run.directory=DIR

Each point of the search is a `--set`: `model.compression.pooling=concat`, `model.compression.window=256`,
`model.compression.overlap=64`, `model.encoder.causal=False`, `model.adapter.kind=mlp_attn`. To expect, from the paper: a loss of
1.169 with the settings here, 1.171 with concat, 1.172 with windows of 256, 1.191 bidirectional, 1.256-1.278 with attention in
the adapter. DATA holds what configs/recipes/pretraining.py prepares.
"""

from configs import recipes
from configs.models.shapes import QWEN3_0P6B, QWEN3_EMBEDDING_0P6B, with_memory_tokens
from lclm_jax.config import CompressionConfig, Config, ModelConfig, ParameterGroup, StageConfig


def config() -> Config:
    pretraining = recipes.pretraining.recipe()
    return Config(
        model=ModelConfig(
            encoder=QWEN3_EMBEDDING_0P6B,
            decoder=with_memory_tokens(QWEN3_0P6B),
            compression=CompressionConfig(ratio=16, window=1024),
        ),
        stages=(
            StageConfig(
                "scratch",
                steps=10_000,
                groups=(
                    ParameterGroup("adapter/.*", 1e-3, 0.01),
                    ParameterGroup("(encoder|decoder)/.*", 3e-4, 0.1),
                ),
                streams=pretraining.streams,
                warmup_steps=500,
                final_learning_rate=3e-5,
                directory=pretraining.name,
            ),
        ),
    )
