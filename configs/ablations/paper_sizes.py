"""The paper's size study: 0.6B + 4B, 4B + 4B and 0.6B + 8B, each with two seeds and its control.

    python -m launch.ablate --sweep configs/ablations/paper_sizes.py --dry-run --slice v5p:4x4x4
    mkdir runs/sizes
    python -m launch.ablate --sweep configs/ablations/paper_sizes.py --out runs/sizes

Every cell is configs/lclm_0p6b_4b_16x.py with other towers, which start from the weights that
`convert.from_towers` writes to runs/base-ENCODER-DECODER. Its data is what `launch.prepare` writes
to runs/data for configs/recipes/pretraining.py and configs/recipes/fine_tuning.py. The control
reads all contexts as text, so its rows hold fewer examples.
"""

from dataclasses import replace

from configs.lclm_0p6b_4b_16x import config as published_config
from configs.models.shapes import (
    QWEN3_4B_INSTRUCT_2507,
    QWEN3_8B,
    QWEN3_EMBEDDING_0P6B,
    QWEN3_EMBEDDING_4B,
    with_memory_tokens,
)
from lclm_jax.config import Config, StageConfig
from lclm_jax.sweeps.analysis.paper import SIZES, SIZES_SOURCE
from lclm_jax.sweeps.cells import Expectation, Sweep, cell_at, control_of

SEEDS = (0, 1)
ENCODERS = {"0.6B": QWEN3_EMBEDDING_0P6B, "4B": QWEN3_EMBEDDING_4B}
DECODERS = {"4B": QWEN3_4B_INSTRUCT_2507, "8B": QWEN3_8B}
REASON = f"Larger towers lose less; {SIZES_SOURCE}, trained them and gives no losses."
EXPECTATIONS = (
    Expectation(({"encoder": "4B"}, {"encoder": "0.6B"}), REASON, {"decoder": "4B"}),
    Expectation(({"decoder": "8B"}, {"decoder": "4B"}), REASON, {"encoder": "0.6B"}),
)


def cell_config(encoder: str, decoder: str, seed: int) -> Config:
    """Return the published config with other towers."""
    config = published_config()
    towers = {"encoder": ENCODERS[encoder], "decoder": with_memory_tokens(DECODERS[decoder])}
    run = replace(config.run, init_from=f"runs/base-{encoder}-{decoder}", seed=seed)
    model = replace(config.model, **towers)
    stages = config.stages if model.decoder.tied else tuple(map(with_head, config.stages))
    return replace(config, model=model, stages=stages, run=run)


def with_head(stage: StageConfig) -> StageConfig:
    """Return a stage that trains the decoder's output matrix as it does the decoder."""
    decoder = next(group for group in stage.groups if group.pattern == "decoder/.*")
    return replace(stage, groups=(*stage.groups, replace(decoder, pattern="head")))


def sweep() -> Sweep:
    cells = [
        cell_at(cell_config, {"encoder": encoder, "decoder": decoder, "seed": seed})
        for seed in SEEDS
        for encoder, decoder in SIZES
    ]
    controls = [
        control_of(
            cell_at(cell_config, {"encoder": "0.6B", "decoder": decoder, "seed": seed}),
            decoder=decoder,
            seed=seed,
        )
        for seed in SEEDS
        for decoder in DECODERS
    ]
    return Sweep((*cells, *controls), expectations=EXPECTATIONS)
