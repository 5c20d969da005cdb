"""Check that a training run survives export to the published layout and import from it."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from convert.from_hf import from_hf
from convert.to_hf import to_hf
from lclm_jax.batch import Batch
from lclm_jax.config import Config
from lclm_jax.data.loading import PackedBatches, StageData
from lclm_jax.files.atomic import write_whole
from lclm_jax.files.run_layout import ROUND_TRIP
from lclm_jax.inference.language_model import LanguageModel, load
from lclm_jax.model.lclm import LCLM, apply


def verify_export(run_directory: Path, exported: Path, config: Config):
    """Export a run to `exported` and write `round_trip.json` into the run's directory.

    The result is kept beside the export, too; where it is there already, nothing is done.
    """
    result_file = exported.with_suffix(".json")
    if result_file.exists():
        return
    result = json.dumps(compare_round_trip(run_directory, exported, config), indent=2)
    write_whole(run_directory / ROUND_TRIP, result)
    write_whole(result_file, result)


def compare_round_trip(run_directory: Path, exported: Path, config: Config) -> dict[str, Any]:
    """Export a run, import the export, and compare the logits of one batch of held-out rows."""
    if not exported.exists():
        to_hf(run_directory, exported)
    returned = exported.parent / f"{exported.name}.back"
    if not returned.exists():
        from_hf(exported, returned)

    original, imported = load(run_directory), load(returned)
    stage = StageData(config, config.stages[-1], original.tokenizer)
    batch = next(iter(PackedBatches(stage.mix_streams("held"))))
    expected, actual = (np.asarray(_logits(model, batch)) for model in (original, imported))
    files = list(exported.rglob("*.safetensors"))
    return {
        "directory": str(exported),
        "tensors": len(jax.tree.leaves(original.params)),
        "bytes": sum(file.stat().st_size for file in files),
        "largest_logit_difference": float(np.max(np.abs(expected - actual))),
        "identical": bool(np.array_equal(expected, actual)),
    }


def _logits(model: LanguageModel, batch: Batch) -> jax.Array:
    hidden = apply(model.config, model.params, batch)
    return apply(model.config, model.params, hidden, method=LCLM.logits)
