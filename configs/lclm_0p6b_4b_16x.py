"""The published LCLM with 16 tokens per latent (paper, Table 1).

    python -m convert.from_towers --encoder HF_DIR --decoder HF_DIR --out runs/base
    python -m launch.train --config configs/lclm_0p6b_4b_16x.py --set data.directory=DATA

The encoder is Qwen3-Embedding-0.6B, the decoder Qwen3-4B-Instruct-2507. The command runs all four
stages in order; `--stage encoder` (or `--stage 1`) runs one. DATA holds what
configs/recipes/pretraining.py and configs/recipes/fine_tuning.py prepare, each in its own
directory. Hardware: a v5p-128 slice or larger (256 rows of 16,384 positions per step).
`--set model.compression.ratio=8` or 4 gives the other two published models.
"""

from configs import recipes
from configs.models.shapes import QWEN3_4B_INSTRUCT_2507, QWEN3_EMBEDDING_0P6B, with_memory_tokens
from lclm_jax.config import (
    CompressionConfig,
    Config,
    ModelConfig,
    ParameterGroup,
    Recipe,
    RunConfig,
    StageConfig,
)

BATCH_TOKENS = 256 * 16384  # decoder positions of a global batch
# Windows per row. In the paper's fine-tuning the encoder reads 29.73B tokens, the decoder 21.32B.
# In pre-training the encoder reads 0.82 times the decoder's tokens: the default of 14 windows.
FINE_TUNING_WINDOWS = 23


def stage(
    name: str, tokens: float, warmup: int, rates: tuple, recipe: Recipe, windows: int | None = None
) -> StageConfig:
    """Return a stage that trains on `tokens` decoder positions.

    `rates` are the learning rates of adapter, encoder and decoder; None freezes a component.
    """
    names = ("adapter", "encoder", "decoder")
    groups = tuple(
        ParameterGroup(f"{part}/.*", rate, 0.0 if part == "decoder" else 0.01)
        for part, rate in zip(names, rates, strict=True)
    )
    return StageConfig(
        name,
        int(tokens // BATCH_TOKENS),
        groups,
        recipe.streams,
        warmup,
        directory=recipe.name,
        row_windows=windows,
    )


def config() -> Config:
    pretraining, fine_tuning = recipes.pretraining.recipe(), recipes.fine_tuning.recipe()
    return Config(
        model=ModelConfig(
            encoder=QWEN3_EMBEDDING_0P6B,
            decoder=with_memory_tokens(QWEN3_4B_INSTRUCT_2507),
            compression=CompressionConfig(ratio=16, window=1024),
        ),
        stages=(
            stage("adapter", 21.29e9, 250, (1e-3, None, None), pretraining),
            stage("encoder", 42.58e9, 500, (6e-5, 6e-5, None), pretraining),
            stage("decoder", 100.08e9, 1000, (6e-5, 6e-5, 1e-5), pretraining),
            stage("sft", 21.32e9, 500, (3e-5, 3e-5, 3e-5), fine_tuning, FINE_TUNING_WINDOWS),
        ),
        run=RunConfig(directory="runs/lclm_0p6b_4b_16x", init_from="runs/base", keep_every=5000),
    )
