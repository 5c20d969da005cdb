"""The paper's architecture search on small towers, in cells of minutes on a CPU core.

    python -m launch.ablate --sweep configs/ablations/cpu_scratch.py --dry-run
    mkdir runs/cpu_scratch
    python -m launch.ablate --sweep configs/ablations/cpu_scratch.py --out runs/cpu_scratch

The paper's windows of 1024, 256 and 16 tokens, at 16 tokens per latent, are windows of 32, 8 and 4
here, at 4 tokens per latent: a whole context, two latents, and one. Text and training are those of
configs/ablations/words.py; unlike in the paper's search the decoder can read text before.
"""

from dataclasses import replace
from itertools import product
from typing import Any

from configs.ablations import words
from lclm_jax.config import AdapterConfig, CompressionConfig, Config
from lclm_jax.sweeps.analysis.paper import paper_loss
from lclm_jax.sweeps.cells import Cell, Expectation, Sweep, cell_at, control_of

STEPS = 500  # in each of two stages
SEEDS = (0, 1, 2)
BASELINE: dict[str, Any] = {
    "pooling": "mean",
    "window": 32,
    "mask": "causal",
    "overlap": 0,
    "adapter": "mlp",
    "ratio": 4,
}
PAPER_WINDOWS = {32: 1024, 8: 256, 4: 16}
# All combinations of pooling, window and mask, and single changes of the baseline.
SETTINGS: tuple[dict[str, Any], ...] = (
    *(
        BASELINE | {"pooling": pooling, "window": window, "mask": mask}
        for pooling, window, mask in product(
            ("mean", "concat", "eos"), (32, 4), ("causal", "bidirectional")
        )
    ),
    BASELINE | {"window": 8},
    BASELINE | {"overlap": 8},
    BASELINE | {"adapter": "mlp_attn"},
    BASELINE | {"adapter": "attn_mlp"},
    BASELINE | {"ratio": 2},
    BASELINE | {"ratio": 8},
)
# Written before the first cell was trained.
EXPECTATIONS = (
    Expectation(
        ({"pooling": "concat"}, {"pooling": "mean"}, {"pooling": "eos"}),
        "At 4 tokens per latent the paper's full-scale runs prefer concat; its search, at 16, has "
        "mean before concat before eos. Concat need not learn where in its group a token stands.",
    ),
    Expectation(
        ({"window": 32}, {"window": 8}, {"window": 4}),
        "The paper's search, in which a wider window is better. Here words are drawn "
        "independently, so that neighbours tell little, and the difference may vanish.",
        where={factor: x for factor, x in BASELINE.items() if factor != "window"},
    ),
    Expectation(
        ({"mask": "causal"}, {"mask": "bidirectional"}),
        "The paper's search, by 0.02 nats; to expect of so small a difference is that it cannot be "
        "told.",
    ),
    Expectation(
        ({"adapter": "mlp"}, {"adapter": "mlp_attn"}),
        "The paper's search, in which adapters with attention are the worst by far.",
    ),
    Expectation(
        ({"ratio": 2}, {"ratio": 4}, {"ratio": 8}),
        "Every study: fewer tokens per latent lose less.",
    ),
)


def cell_config(
    pooling: Any, window: int, mask: str, overlap: int, adapter: Any, ratio: int, seed: int
) -> Config:
    """Return the config of one point of the search."""
    encoder = replace(words.tower(64, layers=1), causal=mask == "causal")
    return words.config(
        encoder,
        words.tower(64, layers=2),
        CompressionConfig(ratio=ratio, window=window, pooling=pooling, overlap=overlap),
        AdapterConfig(kind=adapter),
        STEPS,
        seed,
    )


def point_cell(setting: dict[str, Any], seed: int) -> Cell:
    """Return a cell with the paper's loss of the point that it stands for."""
    cell = cell_at(cell_config, {**setting, "seed": seed})
    if setting["ratio"] != BASELINE["ratio"] or setting["overlap"]:
        return cell
    tags = {**setting, "ratio": 16, "window": PAPER_WINDOWS[setting["window"]]}
    return replace(cell, published=paper_loss(tags))


def sweep() -> Sweep:
    cells = [point_cell(setting, seed) for seed in SEEDS for setting in SETTINGS]
    controls = [
        control_of(cell_at(cell_config, {**BASELINE, "seed": seed}), seed=seed) for seed in SEEDS
    ]
    return Sweep((*cells, *controls), words.prepare, BASELINE, EXPECTATIONS)
