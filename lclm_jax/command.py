"""What every command line shares: logging, tables, and errors a user can act on as one line instead of a stack trace."""

import logging
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lclm_jax.config import Config, ConfigError
from lclm_jax.config_values import override
from lclm_jax.errors import UserError


def run(main: Callable[[], None], cache: bool = True):
    """Calls `main`; a mistake in the input ends with its message and exit status 2, an interruption
    with 130.

    With `cache`, a command that uses JAX keeps its compiled programs on disk
    (`compilation.enable_cache`).
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    for noisy in ("absl", "jax", "orbax"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)  # their errors reach us as exceptions
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if cache and "jax" in sys.modules:
        from lclm_jax.compilation import enable_cache

        enable_cache()
    try:
        main()
    except KeyboardInterrupt as stop:
        sys.stderr.write(f"{stop or 'interrupted'}\n")
        sys.exit(130)
    except (UserError, FileNotFoundError, FileExistsError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


def show_table(table: Table):
    """Writes a table to stdout: as wide as the terminal, or wide enough for what reads a pipe."""
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def read_config(path: str, assignments: list[str]) -> tuple[Config, dict[str, Any]]:
    """The config a file's `config()` returns, changed by `key=value` assignments, and the file's other names."""
    make, names = read_function(path, "config")
    return override(make(), *assignments), names


def read_function(path: str, name: str) -> tuple[Callable[[], Any], dict[str, Any]]:
    """The function `name` of a Python file in configs/, and all its names."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path}: no such config; expected a Python file with a function {name}()"
        )
    names = runpy.run_path(path)
    if name not in names:
        raise ConfigError(
            f"{path} has no function {name}(); expected one that returns a lclm_jax {name.capitalize()}"
        )
    return names[name], names
