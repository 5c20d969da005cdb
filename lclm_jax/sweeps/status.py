"""Status of a sweep while workers walk it, read from its directory."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

from lclm_jax.files.run_layout import LOG
from lclm_jax.sweeps.cells import DATA, RUN, Sweep
from lclm_jax.sweeps.training import read_log
from lclm_jax.sweeps.workers import CellState, read_states
from lclm_jax.sweeps.workers.layout import cell_directory

REFRESH_SECONDS = 3.0


def sweep_states(sweep: Sweep, directory: Path) -> list[CellState]:
    """Return the states of the data and of all cells."""
    jobs = [DATA] if sweep.prepare is not None else []
    return read_states(directory, [*jobs, *(cell.name for cell in sweep.cells)])


def follow_states(sweep: Sweep, directory: Path) -> Iterator[list[CellState]]:
    """Yield the states every few seconds until all are finished or failed."""
    while True:
        states = sweep_states(sweep, directory)
        yield states
        if all(state.status in ("finished", "failed") for state in states):
            return
        time.sleep(REFRESH_SECONDS)


def training_progress(sweep: Sweep, directory: Path, job: str) -> str:
    """Return how far the training of a cell is, by the last line of its log; empty without one."""
    log = cell_directory(directory, job) / RUN / LOG
    lines = read_log(log) if log.exists() else []
    if not lines:
        return ""
    stages, last = sweep.cell(job).config.stages, lines[-1]
    before = itertools.takewhile(lambda stage: stage.name != last["stage"], stages)
    step = sum(stage.steps for stage in before) + last["step"]
    total = sum(stage.steps for stage in stages)
    return f"step {step:,} of {total:,}, loss {last['loss']:.3f}"
