"""What every command line shares: arguments, logging, tables, and errors as one line."""

import argparse
import io
import logging
import os
import runpy
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lclm_jax.config import Config, ConfigError
from lclm_jax.config.settings import Directory, parse
from lclm_jax.config.values import override, read_value
from lclm_jax.errors import UserError, describe

BROKEN_PIPE = 141  # exit status, as a shell gives it


def run(main: Callable[[], None], cache: bool = True):
    """Calls `main` and ends the process where it raises.

    An error that the user can mend ends with its line and exit status 2, an interruption with 130.
    With `cache`, a command that uses JAX keeps its compiled programs on disk
    (`compilation.enable_cache`).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a locale may have few characters
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    for noisy in ("absl", "jax", "orbax"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)  # their errors reach us as exceptions
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        _answer_interrupts(signal.default_int_handler)
        if cache and "jax" in sys.modules:
            from lclm_jax.compilation import enable_cache

            enable_cache()
        main()
        sys.stdout.flush()
    except KeyboardInterrupt as stop:
        _answer_interrupts(signal.SIG_DFL)  # a second one must not add a stack trace
        _end(f"{stop or 'interrupted'}", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for the flush at the end
        sys.exit(BROKEN_PIPE)
    except Exception as error:
        message = describe(error)
        if message is None:
            raise
        _end(f"error: {message}", 2)


def _answer_interrupts(handler: Any):
    """Sets what Ctrl-C does, unless this process ignores it, as under nohup."""
    on_main_thread = threading.current_thread() is threading.main_thread()
    if on_main_thread and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)


def _end(message: str, status: int):
    """Ends the process with a last line."""
    sys.stderr.write(f"{message}\n")
    sys.exit(status)


def setting(hint: Any) -> Callable[[str], Any]:
    """The type of an argument whose value has a type and range: `type=setting(Size)`."""

    def convert(text: str) -> Any:
        try:
            return parse(hint, read_value(hint, text), "the value")
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def path(text: str) -> Path:
    """The type of an argument that is a path: not empty, a leading `~` is the home directory."""
    return Path(setting(Directory)(text))


def show_table(table: Table):
    """Writes a table to stdout: as wide as the terminal, or wide enough for what reads a pipe."""
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def read_config(path: str, assignments: list[str]) -> tuple[Config, dict[str, Any]]:
    """The config of a file's `config()`, changed by `key=value`, and the file's other names."""
    make, names = read_function(path, "config")
    config = make()
    if not isinstance(config, Config):
        raise ConfigError(f"{path}: config() must return a Config, got {type(config).__name__}")
    return override(config, *assignments), names


def read_function(path: str, name: str) -> tuple[Callable[[], Any], dict[str, Any]]:
    """The function `name` of a Python file in configs/, and all its names.

    What the file and the function raise becomes a ConfigError that says where in the file.
    """
    file = parse(Directory, path, "the config's path")
    if not Path(file).is_file():
        raise FileNotFoundError(
            f"{path}: no such config; expected a Python file with a function {name}()"
        )
    names = _blame(file, lambda: runpy.run_path(file))
    if not callable(names.get(name)):
        raise ConfigError(
            f"{path} has no function {name}(); expected one that returns a lclm_jax "
            f"{name.capitalize()}"
        )
    return lambda: _blame(file, names[name]), names


def _blame(file: str, call: Callable[[], Any]) -> Any:
    """The result of a user's code. Raises ConfigError with the file and line of what it raises."""
    try:
        return call()
    except (Exception, SystemExit) as error:
        frames = [
            frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file
        ]
        line = frames[-1].lineno if frames else getattr(error, "lineno", None)
        where = f"{file}, line {line}" if line else file
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        first = (str(error).strip() or "no message").splitlines()[0]
        raise ConfigError(f"{where}: {kind}{first}") from error
