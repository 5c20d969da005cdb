"""Errors while a command's modules are imported, which takes seconds, end it with one line.

`python -m launch.NAME` imports this before anything else; `lclm_jax.cli.run` takes over when
`main` begins.
"""

import importlib.util
import os
import runpy
import signal
import sys


def _interrupt(number, frame):
    sys.stderr.write("interrupted\n")
    sys.stderr.flush()
    os._exit(130)


def _report(kind, error, trace):
    message = _describe(error)
    if message is None:
        sys.__excepthook__(kind, error, trace)
        return
    sys.stderr.write(f"error: {message}\n")
    sys.stderr.flush()
    os._exit(2)


def _describe(error: BaseException) -> str | None:
    """Calls `lclm_jax.errors.describe`, which may not be imported yet."""
    module = sys.modules.get("lclm_jax.errors")
    if module:
        return module.describe(error)
    spec = importlib.util.find_spec("lclm_jax")
    places = list(spec.submodule_search_locations or []) if spec else []
    return runpy.run_path(f"{places[0]}/errors.py")["describe"](error) if places else None


def watch():
    """Handles Ctrl-C and exceptions until `lclm_jax.cli.run` does."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGINT, _interrupt)
    sys.excepthook = _report
