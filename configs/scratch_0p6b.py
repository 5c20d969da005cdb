"""The paper's architecture search: two random Qwen3-0.6B towers, trained together at ratio 16.

    python -m launch.train --config configs/scratch_0p6b.py \
        --set data.directory=DATA --set run.directory=DIR

DATA holds what configs/recipes/pretraining.py prepares. `--set` selects another point of the
search. The paper's losses:

    1.169        the settings here
    1.171        model.compression.pooling=concat
    1.172        model.compression.window=256
    1.191        model.encoder.causal=False
    1.256-1.278  model.adapter.kind=mlp_attn

The search also covers overlapping windows: `model.compression.overlap=64`.
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
