"""Files of a checkpoint directory beside its steps: `model.json` and `tokenizer/`."""

import json
from dataclasses import replace
from pathlib import Path

from lclm_jax.checkpoint.steps import CheckpointError, Checkpoints
from lclm_jax.config import ModelConfig
from lclm_jax.config.values import differences, from_dict, to_dict
from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.errors import FileError
from lclm_jax.files.atomic import write_whole
from lclm_jax.files.directories import check_path, locked
from lclm_jax.files.reading import read_json
from lclm_jax.files.run_layout import CONFIG, MODEL, STEPS, TOKENIZER
from lclm_jax.typing import Params

# What a run writes after its model.json.
LATER_FILES = (CONFIG, TOKENIZER, STEPS)


def check_model_files(directory: str | Path, config: ModelConfig, tokenizer: Tokenizer):
    """Check that a run may write to a directory.

    Raises CheckpointError where it holds something else than a run, or a run of another model or
    tokenizer.
    """
    directory = Path(directory)
    if not (directory / MODEL).exists():
        names = [name for name in LATER_FILES if (directory / name).exists()]
        if names:
            raise CheckpointError(
                f"{directory} holds {', '.join(names)} and no model.json, so it is no training "
                "run; set run.directory to a new place"
            )
        return
    if not (directory / STEPS).exists():
        return
    saved, saved_tokenizer = read_model_files(directory)
    saved = replace(saved, dtype=config.dtype, remat=config.remat)
    if changed := differences(to_dict(saved), to_dict(config)):
        parts = ", ".join(dict.fromkeys(name.partition(".")[0] for name in changed))
        listed = ", ".join(f"{name} {old!r} -> {new!r}" for name, (old, new) in changed.items())
        raise CheckpointError(
            f"{directory} holds another model (model.json differs in {parts}): {listed}; "
            "set run.directory to a new place, or the model as it was"
        )
    if saved_tokenizer.definition != tokenizer.definition:
        raise CheckpointError(
            f"{directory} holds a model with another tokenizer; expected the one in "
            f"{directory}/tokenizer. Set run.directory to a new place, or data.directory to the "
            "data this model was trained on"
        )


def write_model_files(directory: str | Path, config: ModelConfig, tokenizer: Tokenizer):
    """Write the config and the tokenizer of the saved steps, after `check_model_files`."""
    check_model_files(directory, config, tokenizer)
    write_config(directory, config)
    tokenizer.save(Path(directory) / TOKENIZER)


def write_config(directory: str | Path, config: ModelConfig):
    """Write `model.json`."""
    write_whole(Path(directory) / MODEL, json.dumps(to_dict(config), indent=2))


def read_model_files(directory: str | Path) -> tuple[ModelConfig, Tokenizer]:
    """Read the config and the tokenizer of a checkpoint."""
    return read_model(directory), Tokenizer.load(Path(directory) / TOKENIZER)


def read_model(directory: str | Path) -> ModelConfig:
    """Read the ModelConfig of a checkpoint.

    Raises FileNotFoundError without `model.json`, CheckpointError where it cannot be read.
    """
    file = Path(directory) / MODEL
    if not file.exists():
        raise FileNotFoundError(
            f"{file}: not a checkpoint; expected a directory with model.json, "
            f"{TOKENIZER}/ and {STEPS}/"
        )
    try:
        return from_dict(ModelConfig, read_json(file))
    except FileError as error:
        raise CheckpointError(f"{file} is not a model's: {error}") from error


def save_model(directory: str | Path, config: ModelConfig, tokenizer: Tokenizer, params: Params):
    """Write a model without training state, as step 0."""
    check_path(directory, "the directory of a checkpoint")
    with locked(directory):
        write_model_files(directory, config, tokenizer)
        with Checkpoints(directory, keep=1) as checkpoints:
            checkpoints.save(0, {"params": params}, {})


def save_streamed(directory: str | Path, config: ModelConfig, params: Params):
    """Write a model whose parameters are read while they are written, without a tokenizer.

    `params` is a tree of `streaming.Streamed`.
    """
    write_config(directory, config)
    with Checkpoints(directory, keep=1) as checkpoints:
        checkpoints.save(0, {"params": params}, {})
