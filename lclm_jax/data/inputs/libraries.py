"""Imports the libraries that only some inputs need."""

import importlib
from typing import Any

from lclm_jax.errors import UserError


def require(module: str) -> Any:
    """The module. Raises UserError naming the extra that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"reading this input needs {module.partition('.')[0]}: pip install 'lclm_jax[data]'"
        ) from error
