"""Traces of a few steps by `jax.profiler`, requested while training runs.

`echo 5 > RUN_DIR/profile` asks for five steps.
"""

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jax

from lclm_jax.distributed.processes import is_first
from lclm_jax.files.run_layout import PROFILE_REQUEST, PROFILES
from lclm_jax.training.stage import StageRun
from lclm_jax.training.step_info import Hook, StepInfo

log = logging.getLogger(__name__)
DEFAULT_STEPS = 3  # of an empty request
MAX_STEPS = 1000  # every traced step takes memory


class Profiler:
    """A watch for the request file, which starts a trace and ends it after the requested steps.

    Only one process of a run traces. A request that cannot be met is logged and training goes on.
    """

    def __init__(self, directory: Path, watches: bool = True):
        self.request, self.traces = directory / PROFILE_REQUEST, directory / PROFILES
        self.watches = watches
        self.left = 0  # steps that are still to be traced
        self.trace: Path | None = None
        self._problem = ""  # the last one logged

    def before_step(self, name: str):
        """Start a trace called `name` if one was requested."""
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
        """End a trace after its last step and return its directory; None at any other step."""
        if self.trace is None:
            return None
        self.left -= 1
        if self.left:
            return None
        jax.block_until_ready(metrics)
        return self.close()

    def close(self) -> Path | None:
        """End an open trace; return its directory, or None if it could not be written."""
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
        """Log a problem, but only once: a request that cannot be removed is met at every step."""
        if str(error) != self._problem:
            log.warning("no trace for %s: %s; training goes on", self.request, error)
        self._problem = str(error)


@contextmanager
def trace_on_request(stage_run: StageRun, done: int) -> Iterator[tuple[Hook, Hook]]:
    """Yield two hooks that trace steps of a stage, from the one after step `done` on, on request.

    The first ends a trace, the second begins one: what runs between them is not traced, unless a
    trace goes on.
    """
    name = stage_run.stage.name
    with closing(Profiler(stage_run.run.directory, is_first())) as profiler:

        def end(info: StepInfo):
            if trace := profiler.after_step(info.metrics):
                stage_run.event("profiled", info.step, directory=str(trace))

        def begin(info: StepInfo):
            if not info.last:
                profiler.before_step(f"{name}-{info.step + 1}")

        profiler.before_step(f"{name}-{done + 1}")
        yield end, begin


def _take(request: Path) -> int:
    """Remove a request and return its number of steps, 0 if there is none.

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
