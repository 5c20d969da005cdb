"""Traces of a few steps for `jax.profiler`, asked for while training runs: `echo 5 > RUN_DIR/profile`."""

import logging
from pathlib import Path
from typing import Any

import jax

from lclm_jax.files.run_layout import PROFILE_REQUEST, PROFILES

log = logging.getLogger(__name__)
DEFAULT_STEPS = 3  # traced for an empty request
MAX_STEPS = 1000  # a trace takes memory with every step


class Profiler:
    """Begins a trace when the file is there, and ends it so many steps later.

    One process of a run has one. Training goes on whatever the request is, traced or not.
    """

    def __init__(self, directory: Path, watches: bool = True):
        self.request, self.traces, self.watches = (
            directory / PROFILE_REQUEST,
            directory / PROFILES,
            watches,
        )
        self.left = 0
        self.trace: Path | None = None
        self._problem = ""  # the last that was logged

    def before_step(self, name: str):
        if not self.watches or self.trace is not None:
            return
        try:
            self.left = _take(self.request)
            if self.left:
                jax.profiler.start_trace(self.traces / name)
                self.trace = self.traces / name
        except (OSError, ValueError, RuntimeError) as error:
            self._warn(error)

    def after_step(self, metrics: Any) -> Path | None:
        """The finished trace's directory, after its last step."""
        if self.trace is None:
            return None
        self.left -= 1
        if self.left:
            return None
        jax.block_until_ready(metrics)
        return self.close()

    def close(self) -> Path | None:
        """Ends a trace that is open. Returns its directory, unless it could not be written."""
        trace, self.trace = self.trace, None
        if trace is None:
            return None
        try:
            jax.profiler.stop_trace()
        except (OSError, ValueError, RuntimeError) as error:
            self._warn(error)
            return None
        log.info("the trace is %s; look at it with xprof or https://ui.perfetto.dev", trace)
        return trace

    def _warn(self, error: Exception):
        """Logs a new problem; a request that cannot be removed is there at every step."""
        if str(error) != self._problem:
            log.warning("no trace for %s: %s; training goes on", self.request, error)
        self._problem = str(error)


def _take(request: Path) -> int:
    """Removes a request and returns its number of steps, 0 if there is none.

    Raises ValueError for anything but a number of steps.
    """
    if not request.exists():
        return 0
    if not request.is_file():
        raise ValueError("expected a file with a number of steps, got a directory or a device")
    with request.open("rb") as file:
        text = file.read(100).decode(errors="replace").strip()
    request.unlink()
    if not text:
        return DEFAULT_STEPS
    if not (text.isascii() and text.isdecimal() and 0 < int(text) <= MAX_STEPS):
        raise ValueError(f"expected a number of steps from 1 to {MAX_STEPS}, got {text!r}")
    return int(text)
