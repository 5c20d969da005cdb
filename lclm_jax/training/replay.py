"""Batches whose loss or gradients were not finite, saved with a checkpoint and computed again.

A batch is saved with the checkpoint whose parameters it was skipped with.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lclm_jax.batch import Batch, Windows
from lclm_jax.checkpoint.steps import CheckpointError, load_params
from lclm_jax.config import Config, StageConfig
from lclm_jax.config.values import from_dict
from lclm_jax.distributed.sharding import batch_sharding, make_mesh
from lclm_jax.files.reading import read_json
from lclm_jax.files.run_layout import CONFIG, SKIPPED
from lclm_jax.model.params import abstract_params
from lclm_jax.scoring import token_losses
from lclm_jax.training.optim import split_trained
from lclm_jax.training.step import component_norms, gradients_of

DETAILS_KEY = "told"  # of the details in the file; saved batches of every version have it


def keep_batch(directory: Path, batch: Batch, details: Mapping[str, Any]) -> Path:
    """Write a whole global batch with its details, and return the file.

    The details are stage, step, checkpoint and records by row.
    """
    folder = directory / SKIPPED
    folder.mkdir(exist_ok=True)
    file = folder / f"{details['stage']}-{details['step']}.npz"
    arrays = {
        **_fields(batch),
        **{f"windows.{name}": x for name, x in _fields(batch.windows).items()},
    }
    arrays[DETAILS_KEY] = np.array(json.dumps(details))
    np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]  # no allow_pickle
    return file


def _fields(part: Batch | Windows) -> dict[str, np.ndarray]:
    named = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    return {name: np.asarray(x) for name, x in named.items() if not isinstance(x, Windows)}


def kept_batches(directory: Path) -> list[Path]:
    """Return the files of a run's saved batches, the newest last."""
    return sorted((directory / SKIPPED).glob("*.npz"), key=lambda file: file.stat().st_mtime)


def read_batch(file: Path) -> tuple[Batch, dict[str, Any]]:
    """Return a saved batch and its details."""
    with np.load(file, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    details = json.loads(str(arrays.pop(DETAILS_KEY)))
    windows = {
        name.partition(".")[2]: arrays.pop(name)
        for name in list(arrays)
        if name.startswith("windows.")
    }
    return Batch(**arrays, windows=Windows(**windows)), details


@dataclasses.dataclass(frozen=True)
class Replayed:
    """The loss and gradients of a batch, with the parameters it was skipped with."""

    details: dict[str, Any]  # stage, step, checkpoint, records by row
    loss: float
    norms: dict[str, float]  # of gradients, by component
    examples: list[tuple[str, int, float]]  # (record, row, mean loss), in the batch's order
    # (row, gradient norm) of each row alone; only where every loss is finite and a gradient is not
    rows: list[tuple[int, float]]

    @property
    def suspects(self) -> list[str]:
        """The records whose own loss, or whose row's gradient, is not finite."""
        bad = [row for row, norm in self.rows if not np.isfinite(norm)]
        return [
            record for record, row, loss in self.examples if not np.isfinite(loss) or row in bad
        ]


def replay(directory: Path, file: Path | None = None) -> Replayed:
    """Compute a saved batch's loss and gradients again, in total and by record or row.

    The parameters are those of the checkpoint that was saved with it; `file` is by default the
    newest saved batch. Raises CheckpointError for a run without one.
    """
    files = kept_batches(directory)
    if file is None and not files:
        raise CheckpointError(
            f"{directory} has kept no batch; one is kept when too many steps in a row are not "
            "finite"
        )
    batch, details = read_batch(file or files[-1])
    config = from_dict(Config, read_json(directory / CONFIG))
    stage = next(stage for stage in config.stages if stage.name == details["stage"])
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        params = load_params(directory, abstract_params(config.model, mesh), details["checkpoint"])
        trained, frozen = split_trained(params, stage)
        batch = jax.device_put(batch, batch_sharding(mesh))
        losses = partial(token_losses, config=config.model, loss_chunk=config.run.loss_chunk)
        nll = np.asarray(jax.jit(losses)(params, batch)[1])
        differentiate = jax.jit(partial(_norms, config=config, stage=stage))
        loss, norms = jax.device_get(differentiate(trained, frozen, batch))
        examples = _by_example(nll, batch, details["records"])
        rows: list[tuple[int, float]] = []
        finite_losses = all(np.isfinite(x) for _, _, x in examples)
        if finite_losses and not all(map(np.isfinite, norms.values())):
            for row in range(len(nll)):
                is_row = np.arange(len(nll))[:, None] == row
                weights = np.where(is_row, np.asarray(batch.weights), 0).astype(np.float32)
                alone = batch.replace(weights=jax.device_put(weights, batch_sharding(mesh)))
                row_norms = jax.device_get(differentiate(trained, frozen, alone)[1])
                rows.append((row, float(np.linalg.norm(list(row_norms.values())))))
    return Replayed(
        details, float(loss), {name: float(norm) for name, norm in norms.items()}, examples, rows
    )


def _norms(trained: Any, frozen: Any, batch: Batch, config: Config, stage: StageConfig) -> Any:
    loss, _, gradients = gradients_of(trained, frozen, batch, config, stage)
    return loss, component_norms(gradients)


def _by_example(
    nll: np.ndarray, batch: Batch, records: Sequence[Sequence[str]]
) -> list[tuple[str, int, float]]:
    weights, segments = np.asarray(batch.weights), np.asarray(batch.segments)
    losses = []
    for row, names in enumerate(records):
        for number, name in enumerate(names, start=1):
            trained = (segments[row] == number) & (weights[row] > 0)
            loss = float(nll[row][trained].mean()) if trained.any() else 0.0
            losses.append((name, row, loss))
    return losses
