"""Checkpoints: saved steps, the files of a model beside them, and checks that all are intact."""

from lclm_jax.checkpoint.model_files import (
    check_model_files,
    read_model,
    read_model_files,
    save_model,
    save_streamed,
    write_model_files,
)
from lclm_jax.checkpoint.steps import (
    CheckpointError,
    Checkpoints,
    load_params,
    saved_params,
    saved_steps,
)

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "check_model_files",
    "load_params",
    "read_model",
    "read_model_files",
    "save_model",
    "save_streamed",
    "saved_params",
    "saved_steps",
    "write_model_files",
]
