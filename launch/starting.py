"""One-line errors while a command's modules are being imported, which takes seconds.

The packages `launch` and `convert` call `watch` before they import anything else. From `main` on,
`lclm_jax.cli.run` handles errors and Ctrl-C.
"""

import importlib.util
import os
import runpy
import signal
import sys


def watch():
    """Print one line, without a stack trace, for Ctrl-C and for errors a user can correct."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # nohup ignores it
        signal.signal(signal.SIGINT, _exit_on_interrupt)
    sys.excepthook = _print_error


def _exit_on_interrupt(number, frame):
    _exit("interrupted", 130)


def _print_error(kind, error, trace):
    message = _describe(error)
    if message is None:
        sys.__excepthook__(kind, error, trace)
    else:
        _exit(f"error: {message}", 2)


def _exit(message: str, status: int):
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()
    os._exit(status)


def _describe(error: BaseException) -> str | None:
    """Call `lclm_jax.errors.describe`, from its file where the import of lclm_jax failed."""
    module = sys.modules.get("lclm_jax.errors")
    if module:
        return module.describe(error)
    spec = importlib.util.find_spec("lclm_jax")
    locations = list(spec.submodule_search_locations or []) if spec else []
    if not locations:
        return None
    return runpy.run_path(f"{locations[0]}/errors.py")["describe"](error)
