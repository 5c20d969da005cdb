"""A batch whose loss or gradients were not finite, kept beside the checkpoint from before it, and looked at again."""

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


def keep_batch(directory: Path, batch: Batch, told: Mapping[str, Any]) -> Path:
    """Writes a whole global batch and what is known of it: stage, step, checkpoint, records by row."""
    place = directory / SKIPPED
    place.mkdir(exist_ok=True)
    file = place / f"{told['stage']}-{told['step']}.npz"
    arrays = {
        **_fields(batch),
        **{f"windows.{name}": x for name, x in _fields(batch.windows).items()},
    }
    np.savez_compressed(file, told=np.array(json.dumps(told)), **arrays)
    return file


def _fields(part: Batch | Windows) -> dict[str, np.ndarray]:
    named = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    return {name: np.asarray(x) for name, x in named.items() if not isinstance(x, Windows)}


def kept_batches(directory: Path) -> list[Path]:
    """The kept batches of a run, the newest last."""
    return sorted((directory / SKIPPED).glob("*.npz"), key=lambda file: file.stat().st_mtime)


def read_batch(file: Path) -> tuple[Batch, dict[str, Any]]:
    """A kept batch and what is known of it."""
    with np.load(file, allow_pickle=False) as held:
        arrays = {name: held[name] for name in held.files}
    told = json.loads(str(arrays.pop("told")))
    windows = {
        name.partition(".")[2]: arrays.pop(name)
        for name in list(arrays)
        if name.startswith("windows.")
    }
    return Batch(**arrays, windows=Windows(**windows)), told


@dataclasses.dataclass(frozen=True)
class Replayed:
    """What a batch does to the parameters it was skipped with."""

    told: dict[str, Any]
    loss: float
    norms: dict[str, float]  # of gradients, by component
    examples: list[tuple[str, int, float]]  # (record, row, mean loss), in the batch's order
    rows: list[
        tuple[int, float]
    ]  # (row, gradient norm) of each alone; only where every loss is finite and a gradient is not

    @property
    def suspects(self) -> list[str]:
        """The records that are not finite by themselves."""
        bad = [row for row, norm in self.rows if not np.isfinite(norm)]
        return [
            record for record, row, loss in self.examples if not np.isfinite(loss) or row in bad
        ]


def replay(directory: Path, file: Path | None = None) -> Replayed:
    """Computes a kept batch's loss and gradients again, from the checkpoint that was saved with it, and who is to blame.

    Raises CheckpointError for a run without such a batch.
    """
    files = kept_batches(directory)
    if file is None and not files:
        raise CheckpointError(
            f"{directory} has kept no batch; one is kept when too many steps in a row are not finite"
        )
    batch, told = read_batch(file or files[-1])
    config = from_dict(Config, read_json(directory / CONFIG))
    stage = next(stage for stage in config.stages if stage.name == told["stage"])
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        params = load_params(directory, abstract_params(config.model, mesh), told["checkpoint"])
        trained, frozen = split_trained(params, stage)
        batch = jax.device_put(batch, batch_sharding(mesh))
        losses = partial(token_losses, config=config.model, loss_chunk=config.run.loss_chunk)
        nll = np.asarray(jax.jit(losses)(params, batch)[1])
        differentiate = jax.jit(partial(_norms, config=config, stage=stage))
        loss, norms = jax.device_get(differentiate(trained, frozen, batch))
        examples = _by_example(nll, batch, told["records"])
        rows: list[tuple[int, float]] = []
        if all(np.isfinite(x) for _, _, x in examples) and not all(
            map(np.isfinite, norms.values())
        ):
            for row in range(len(nll)):
                only = np.where(
                    np.arange(len(nll))[:, None] == row, np.asarray(batch.weights), 0
                ).astype(np.float32)
                alone = batch.replace(weights=jax.device_put(only, batch_sharding(mesh)))
                rows.append(
                    (
                        row,
                        float(
                            np.linalg.norm(
                                list(
                                    jax.device_get(
                                        differentiate(trained, frozen, alone)[1]
                                    ).values()
                                )
                            )
                        ),
                    )
                )
    return Replayed(
        told, float(loss), {name: float(norm) for name, norm in norms.items()}, examples, rows
    )


def _norms(trained: Any, frozen: Any, batch: Batch, config: Config, stage: StageConfig) -> Any:
    loss, _, gradients = gradients_of(trained, frozen, batch, config, stage)
    return loss, component_norms(gradients)


def _by_example(
    nll: np.ndarray, batch: Batch, records: Sequence[Sequence[str]]
) -> list[tuple[str, int, float]]:
    weights, segments = np.asarray(batch.weights), np.asarray(batch.segments)
    found = []
    for row, names in enumerate(records):
        for number, name in enumerate(names, start=1):
            mine = (segments[row] == number) & (weights[row] > 0)
            found.append((name, row, float(nll[row][mine].mean()) if mine.any() else 0.0))
    return found
