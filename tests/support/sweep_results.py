"""Results of cells that nobody has trained."""

import json
from pathlib import Path

from lclm_jax.config.values import to_dict
from lclm_jax.sweeps.cells import Cell
from lclm_jax.sweeps.results import CellResult
from lclm_jax.sweeps.workers.layout import RESULT, cell_directory

NOTHING = 4.0  # loss without the context


def make_result(
    cell: Cell, loss: float, encoder: int = 1000, decoder: int = 4000, tokens: int = 10_000
) -> CellResult:
    """Return a result with this loss from latents, or from text for a control."""
    views = {"text": loss, "first": 3.0} if cell.is_control else {"latents": loss}
    sizes = {"encoder": encoder, "decoder": decoder, "adapter": 100}
    counts = {"context_tokens": tokens, "decoder_tokens": tokens, "latents": 0}
    return CellResult(
        cell=cell.name,
        levels=dict(cell.levels),
        config=to_dict(cell.config),
        control=cell.is_control,
        parameters=sizes,
        matrix_parameters=sizes,
        tokens={"trained_tokens": tokens, **counts},
        flops=6.0 * tokens * (encoder + 2 * decoder),
        steps=10,
        seconds=60.0,
        scores={
            "lookups": {
                view: {"loss": x, "accuracy": 1 / (1 + x), "tokens": 100.0}
                for view, x in (views | {"nothing": NOTHING}).items()
            }
        },
        device="1 x cpu",
        versions={"lclm_jax": "0", "jax": "0"},
    )


def write_result(directory: Path, result: CellResult):
    """Write a result to its place in the directory of a sweep."""
    cell = cell_directory(directory, result.cell)
    cell.mkdir(parents=True, exist_ok=True)
    (cell / RESULT).write_text(json.dumps(result.to_dict()), encoding="utf-8")
