"""Imports of libraries that only some formats and functions need."""

import importlib
from typing import Any

from lclm_jax.errors import UserError


def require(module: str, extra: str = "data") -> Any:
    """Import a module. Raises UserError that names the extra which installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(f"this needs {package}: pip install 'lclm_jax[{extra}]'") from error
