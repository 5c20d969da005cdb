"""The paper's architecture search with three seeds, and the decoder without compression.

    python -m launch.ablate --sweep configs/ablations/paper_scratch.py --dry-run
    mkdir runs/scratch
    python -m launch.ablate --sweep configs/ablations/paper_scratch.py --out runs/scratch

Every cell is configs/scratch_0p6b.py with one or two settings changed, and takes 10,000 steps. Its
data is what `launch.prepare` writes to runs/data for configs/recipes/pretraining.py. The paper's
losses, each of one seed, are in `lclm_jax.sweeps.analysis.paper`. The control reads the same
examples as text, so its rows hold fewer of them.
"""

from dataclasses import replace
from typing import Any

from configs.scratch_0p6b import config as scratch_config
from lclm_jax.config import AdapterConfig, Config
from lclm_jax.sweeps.analysis.paper import DEFAULT, SEARCH, Point, paper_expectations
from lclm_jax.sweeps.cells import Cell, Sweep, cell_at, control_of

SEEDS = (0, 1, 2)


def cell_config(
    pooling: str, window: int, mask: str, overlap: int, adapter: Any, ratio: int, seed: int
) -> Config:
    """Return the config of one point of the search."""
    config = scratch_config()
    compression = replace(
        config.model.compression, pooling=pooling, window=window, overlap=overlap, ratio=ratio
    )
    model = replace(
        config.model,
        encoder=replace(config.model.encoder, causal=mask == "causal"),
        compression=compression,
        adapter=AdapterConfig(kind=adapter),
    )
    # A row has as many tokens of contexts whatever the window.
    windows = config.data.row_windows * config.model.compression.window // window
    data = replace(config.data, row_windows=windows)
    return replace(config, model=model, data=data, run=replace(config.run, seed=seed))


def point_cell(point: Point, seed: int) -> Cell:
    """Return the cell of a point of the search, with the paper's loss."""
    cell = cell_at(cell_config, {**point.tags, "seed": seed})
    return replace(cell, published=(point.lowest, point.highest))


def sweep() -> Sweep:
    cells = tuple(point_cell(point, seed) for seed in SEEDS for point in SEARCH)
    defaults = (cell_at(cell_config, {**DEFAULT, "seed": seed}) for seed in SEEDS)
    controls = (control_of(cell, seed=cell.levels["seed"]) for cell in defaults)
    return Sweep((*cells, *controls), baseline=DEFAULT, expectations=paper_expectations())
