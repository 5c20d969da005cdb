"""Training and scoring of one cell, from its config to its result."""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import jax

from lclm_jax.checkpoint.model_files import read_model_files
from lclm_jax.checkpoint.steps import load_params
from lclm_jax.config import Config
from lclm_jax.config.values import to_dict
from lclm_jax.data.loading import StageData
from lclm_jax.data.records import VIEWS, View
from lclm_jax.data.records.views import first_tokens
from lclm_jax.distributed.sharding import make_mesh
from lclm_jax.files.run_layout import LOG
from lclm_jax.model.params import abstract_params, component, parameter_shapes
from lclm_jax.sweeps.budget import run_flops
from lclm_jax.sweeps.cells import Cell
from lclm_jax.sweeps.results import CellResult, Scores
from lclm_jax.training.loop import train
from lclm_jax.training.validation import Validation, scores_to_dict
from lclm_jax.version import code_version

EMBEDDINGS = ("/table", "/head")  # ends of the paths of parameters that grow with the vocabulary
SUMS = ("trained_tokens", "context_tokens", "decoder_tokens", "latents")


def train_cell(cell: Cell) -> CellResult:
    """Train a cell, or continue, and score it on held-out examples.

    Raises what `training.train` raises, as NotFinite where the cell diverges.
    """
    config = cell.config
    lines = read_log(train(config) / LOG)
    return CellResult(
        cell=cell.name,
        levels=dict(cell.levels),
        config=to_dict(config),
        control=cell.is_control,
        parameters=count_parameters(config),
        matrix_parameters=count_parameters(config, embeddings=False),
        tokens={key: round(sum(line[key] for line in lines)) for key in SUMS},
        flops=run_flops(config),
        steps=sum(stage.steps for stage in config.stages),
        seconds=training_seconds(lines),
        scores=score_cell(cell),
        device=f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        versions={"lclm_jax": code_version(), "jax": jax.__version__},
    )


def score_cell(cell: Cell) -> Scores:
    """Return loss, accuracy and tokens of the trained cell by stream and view.

    A control reads contexts as text, cut to the positions of latents, and left out; other cells
    read latents, and nothing.
    """
    config = cell.config
    directory, stage = Path(config.run.directory), config.stages[-1]
    _, tokenizer = read_model_files(directory)
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        params = load_params(directory, abstract_params(config.model, mesh))
        validation = Validation(StageData(config, stage, tokenizer), mesh, views_of(cell))
        return scores_to_dict(validation(params))


def views_of(cell: Cell) -> Mapping[str, View]:
    """Return the views that a cell is scored in, by name."""
    if not cell.is_control:
        return {name: VIEWS[name] for name in ("latents", "nothing")}
    first = partial(first_tokens, config=cell.config.model)
    return {"text": VIEWS["text"], "first": first, "nothing": VIEWS["nothing"]}


def count_parameters(config: Config, embeddings: bool = True) -> dict[str, int]:
    """Count the parameters of encoder, adapter and decoder, with or without embeddings."""
    counts: dict[str, int] = {}
    for path, shape in parameter_shapes(config.model).items():
        if embeddings or not path.endswith(EMBEDDINGS):
            counts[component(path)] = counts.get(component(path), 0) + math.prod(shape)
    return counts


def read_log(file: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's log, without those that were cut short.

    Of lines that a continued run wrote twice, it is the last.
    """
    lines: dict[tuple[str, int], dict[str, Any]] = {}
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(json.JSONDecodeError):
            line = json.loads(text)
            lines[line["stage"], line["step"]] = line
    return list(lines.values())


def training_seconds(lines: list[dict[str, Any]]) -> float:
    """Add up the seconds of the steps of a log."""
    seconds, before = 0.0, {"stage": "", "step": 0}
    for line in lines:
        start = before["step"] if before["stage"] == line["stage"] else 0
        seconds += line["step_seconds"] * (line["step"] - start)
        before = line
    return seconds
