"""Traces of a few steps for `jax.profiler`, asked for while training runs: `echo 5 > RUN_DIR/profile`."""

import logging
from pathlib import Path
from typing import Any

import jax

log = logging.getLogger(__name__)
REQUEST = "profile"  # a file in the run's directory; what it says is the number of steps
STEPS = 3  # where it says nothing


class Profiler:
    """Begins a trace when the file is there, and ends it so many steps later. One process of a run has one."""

    def __init__(self, directory: Path, watches: bool = True):
        self.request, self.traces, self.watches = (
            directory / REQUEST,
            directory / "profiles",
            watches,
        )
        self.left = 0
        self.trace: Path | None = None

    def before_step(self, name: str):
        if self.watches and self.trace is None and self.request.exists():
            asked = self.request.read_text(encoding="utf-8").strip()
            self.request.unlink()
            self.left = int(asked) if asked.isdigit() and int(asked) else STEPS
            self.trace = self.traces / name
            jax.profiler.start_trace(self.trace)

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
        """Ends a trace that is open."""
        trace, self.trace = self.trace, None
        if trace is not None:
            jax.profiler.stop_trace()
            log.info("the trace is %s; look at it with xprof or https://ui.perfetto.dev", trace)
        return trace
