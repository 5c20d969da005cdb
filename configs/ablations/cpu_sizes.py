"""A size study on small towers: four encoders, four decoders, and three numbers of steps.

    python -m launch.ablate --sweep configs/ablations/cpu_sizes.py --dry-run
    mkdir runs/cpu_sizes
    python -m launch.ablate --sweep configs/ablations/cpu_sizes.py --out runs/cpu_sizes

Every pair of towers has two seeds at the most steps, and one seed at two smaller numbers of steps,
each a run with its own schedule. Text and training are those of configs/ablations/words.py.
"""

from typing import Any

from configs.ablations import words
from lclm_jax.config import AdapterConfig, CompressionConfig, Config
from lclm_jax.sweeps.cells import Expectation, Sweep, cell_at, control_of, grid

STEPS, FEWER_STEPS = 600, (425, 300)  # in each of two stages
ENCODERS = {"16x1": (16, 1), "32x1": (32, 1), "64x1": (64, 1), "96x2": (96, 2)}  # width x layers
DECODERS = {"32x2": (32, 2), "48x2": (48, 2), "64x2": (64, 2), "96x3": (96, 3)}
BASELINE: dict[str, Any] = {"encoder": "64x1", "decoder": "64x2", "steps": STEPS}
# Written before the first cell was trained.
EXPECTATIONS = (
    Expectation(
        tuple({"encoder": name} for name in reversed(ENCODERS)),
        "A larger encoder loses less at equal steps.",
    ),
    Expectation(
        tuple({"decoder": name} for name in reversed(DECODERS)),
        "A larger decoder loses less at equal steps, and by more than a larger encoder of as many "
        "parameters: the paper's decoders are several times as large as its encoders.",
    ),
    Expectation(
        tuple({"steps": steps} for steps in (STEPS, *FEWER_STEPS)),
        "More steps lose less.",
    ),
)


def cell_config(encoder: str, decoder: str, steps: int, seed: int) -> Config:
    """Return the config of two towers."""
    return words.config(
        words.tower(*ENCODERS[encoder]),
        words.tower(*DECODERS[decoder]),
        CompressionConfig(ratio=4, window=32, pooling="concat"),
        AdapterConfig(),
        steps,
        seed,
    )


def sweep() -> Sweep:
    sizes = {"encoder": tuple(ENCODERS), "decoder": tuple(DECODERS)}
    cells = (
        *grid(cell_config, **sizes, steps=(STEPS,), seed=(0, 1)),
        *grid(cell_config, **sizes, steps=FEWER_STEPS, seed=(0,)),
    )
    controls = [
        control_of(
            cell_at(cell_config, {**BASELINE, "decoder": decoder, "seed": seed}),
            decoder=decoder,
            steps=STEPS,
            seed=seed,
        )
        for decoder in DECODERS
        for seed in (0, 1)
    ]
    return Sweep((*cells, *controls), words.prepare, BASELINE, EXPECTATIONS)
