"""Walking a sweep: the data is prepared once, then every cell is trained by some worker."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from lclm_jax.compilation import enable_cache
from lclm_jax.config.values import to_dict
from lclm_jax.distributed.job import join
from lclm_jax.distributed.processes import is_first, once
from lclm_jax.errors import UserError
from lclm_jax.sweeps.cells import DATA, Sweep
from lclm_jax.sweeps.findings import check_results
from lclm_jax.sweeps.training import train_cell
from lclm_jax.sweeps.workers import (
    CellState,
    Follower,
    StopSignal,
    Worker,
    end_with_parent,
    find_host,
    read_states,
    shared_directory,
)
from lclm_jax.sweeps.workers.layout import RESULT, cell_directory

PROGRAMS = "programs"  # compiled programs, for cells of the same shapes


class SweepError(UserError):
    """The data of a sweep could not be prepared."""


def walk(
    sweep: Sweep, directory: Path, command: Sequence[str], max_attempts: int
) -> list[CellState]:
    """Prepare the data and train cells until all are finished or failed; return their states.

    `command` with the name of a job does it in a process of its own. Where a slice has several
    hosts, call this on each.

    Raises ResultsError where the directory has results of other configs, SweepError where the data
    cannot be prepared, before any cell is trained, and KeyboardInterrupt after SIGTERM or Ctrl-C.
    """
    check_results(sweep, directory)
    host = find_host()

    def work(jobs: Sequence[str]) -> list[CellState]:
        arguments = (directory, jobs, lambda job: [*command, job])
        with StopSignal() as stop:
            if host is None or host.index == 0:
                name = host.slice_name if host else None
                is_done = Worker(*arguments, name, max_attempts).run(stop)
            else:
                is_done = Follower(*arguments, host.slice_name, host.index).run(stop)
        if not is_done:
            raise KeyboardInterrupt("stopped; run the same command to resume")
        return read_states(directory, jobs)

    if sweep.prepare is not None:
        (data,) = work([DATA])
        if data.status == "failed":
            reason = data.failures[-1].reason if data.failures else "see its log"
            raise SweepError(
                f"the data could not be prepared ({reason}); fix that and delete "
                f"{cell_directory(directory, DATA)}"
            )
    return work([cell.name for cell in sweep.cells])


def run_job(sweep: Sweep, directory: Path, job: str):
    """Prepare the data, or train the cell of this name, and write its result."""
    join()
    end_with_parent()
    placed = sweep.in_directory(directory)
    if job == DATA:
        config = placed.cells[0].config
        if sweep.prepare is not None:
            once("prepare the data", partial(sweep.prepare, config))
        result = {"data": config.data.directory}
    else:
        enable_cache(directory / PROGRAMS)
        trained = train_cell(placed.cell(job))
        # The config as in the sweep's file: a result holds no paths of the machine.
        result = replace(trained, config=to_dict(sweep.cell(job).config)).to_dict()
    if is_first():
        path = cell_directory(directory, job) / RESULT
        shared_directory.create(path, json.dumps(result, indent=1))
