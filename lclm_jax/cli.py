"""Command lines: shared arguments, logging, tables, and errors printed as one line."""

import argparse
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from lclm_jax.config import ConfigError
from lclm_jax.config.settings import Directory, Size, parse
from lclm_jax.config.values import read_value
from lclm_jax.errors import describe

USER_ERROR_STATUS = 2
INTERRUPTED_STATUS = 130
BROKEN_PIPE_STATUS = 141  # what a shell reports for a process that SIGPIPE ended
PIPE_TABLE_WIDTH = 160  # characters of a table that is not printed to a terminal


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser that prints a module's docstring as it is written."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_config_arguments(parser: argparse.ArgumentParser, default: str | None = None):
    """Add `--config FILE` and the repeatable `--set KEY=VALUE`.

    `--config` is required unless it has a default.
    """
    note = f" (default: {default})" if default else ""
    parser.add_argument(
        "--config",
        required=default is None,
        default=default,
        metavar="FILE",
        help=f"a Python file as in configs/{note}",
    )
    add_set_argument(parser, "change one setting of the config; repeatable")


def add_set_argument(parser: argparse.ArgumentParser, description: str):
    """Add the repeatable `--set KEY=VALUE`, which is a list of texts."""
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=description)


def add_checkpoint_argument(
    parser: argparse.ArgumentParser, description: str, default: Path | None = None
):
    """Add `--checkpoint DIR`, required unless it has a default."""
    parser.add_argument(
        "--checkpoint",
        type=path,
        required=default is None,
        default=default,
        metavar="DIR",
        help=description,
    )


def add_store_arguments(parser: argparse.ArgumentParser):
    """Add `--store DIR`, and `--checkpoint DIR` for a model that the store does not name."""
    parser.add_argument("--store", type=path, required=True, metavar="DIR")
    parser.add_argument(
        "--checkpoint",
        type=path,
        metavar="DIR",
        help="by default the model that compressed the documents",
    )


def add_input_arguments(parser: argparse.ArgumentParser):
    """Add `--input NAME=PATH`, `--inputs DIR` and `--without NAME`."""
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="an input of a source; repeatable, also for one source",
    )
    parser.add_argument(
        "--inputs",
        type=path,
        metavar="DIR",
        help="directory with the input of every source that has no --input, as NAME or NAME.*",
    )
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="NAME",
        help="leave out a source and its streams; repeatable",
    )


def run(main: Callable[[], None], cache: bool = True):
    """Call `main`, and end the process with one line and an exit status where it raises.

    An error that the user can correct ends with status 2, an interruption with 130; a defect of the
    program keeps its stack trace. With `cache`, a command that uses JAX keeps its compiled programs
    on disk (`compilation.enable_cache`).
    """
    _set_up_output()
    try:
        _set_interrupt_handler(signal.default_int_handler)
        if cache and "jax" in sys.modules:
            from lclm_jax.compilation import enable_cache

            enable_cache()
        main()
        sys.stdout.flush()
    except KeyboardInterrupt as interruption:
        _set_interrupt_handler(signal.SIG_DFL)  # a second Ctrl-C must not print a stack trace
        _exit(str(interruption) or "interrupted", INTERRUPTED_STATUS)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes stdout once more as it exits
        sys.exit(BROKEN_PIPE_STATUS)
    except Exception as error:
        message = describe(error)
        if message is None:
            raise
        _exit(f"error: {message}", USER_ERROR_STATUS)


def _set_up_output():
    """Configure the standard streams and logging for a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # the locale may lack characters that we print
            stream.reconfigure(errors="backslashreplace")

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    for library in ("absl", "jax", "orbax"):  # they log errors that also reach us as exceptions
        logging.getLogger(library).setLevel(logging.CRITICAL)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def _set_interrupt_handler(handler: Any):
    """Set the handler of Ctrl-C, unless this process ignores it, as under nohup."""
    on_main_thread = threading.current_thread() is threading.main_thread()
    if on_main_thread and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)


def _exit(message: str, status: int):
    sys.stderr.write(f"{message}\n")
    sys.exit(status)


def setting(hint: Any) -> Callable[[str], Any]:
    """Return an argument type with the range of a setting, as `type=setting(Size)`."""

    def convert(text: str) -> Any:
        try:
            return parse(hint, read_value(hint, text), "the value")
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def listed(hint: Any) -> Callable[[str], Any]:
    """Return an argument type for values with commas between them, each with the range of `hint`.

    >>> listed(Size)("4096,8192"), listed(str)("gsm8k")
    ((4096, 8192), ('gsm8k',))
    """
    convert = setting(tuple[hint, ...])
    return lambda text: convert(text if "," in text else f"{text},")


def path(text: str) -> Path:
    """Return the path that an argument names, with `~` expanded; it must not be empty."""
    return Path(setting(Directory)(text))


def ratio_rule(text: str) -> tuple[str, int]:
    """Return the pattern of names and the ratio in `PATTERN=RATIO`; a ratio alone is for all.

    >>> ratio_rule("*.py=4"), ratio_rule("16")
    (('*.py', 4), ('*', 16))
    """
    pattern, _, ratio = text.rpartition("=")
    return pattern or "*", setting(Size)(ratio)


def read_turns() -> Iterator[str]:
    """Yield the lines of standard input that are not empty, until its end or /quit.

    In a terminal a prompt asks for each.
    """
    while True:
        if sys.stdin.isatty():
            sys.stderr.write("> ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line or line.strip() == "/quit":
            return
        if line.strip():
            yield line.rstrip("\r\n")


def show_table(table: Table):
    """Print a table to stdout, as wide as the terminal, or a fixed width into a pipe."""
    width = None if sys.stdout.isatty() else PIPE_TABLE_WIDTH
    Console(width=width).print(table)


def show_live(tables: Iterable[Table]):
    """Show tables in a terminal, each in place of the one before; into a pipe, print the first."""
    if not sys.stdout.isatty():
        show_table(next(iter(tables)))
        return
    with Live(console=Console(), auto_refresh=False) as display:
        for table in tables:
            display.update(table, refresh=True)
