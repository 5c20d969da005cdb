"""States of the cells of a sweep, read from its directory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lclm_jax.sweeps.workers import shared_directory
from lclm_jax.sweeps.workers.failures import Failure, read_failures
from lclm_jax.sweeps.workers.layout import FAILURE, RESULT, cell_directory
from lclm_jax.sweeps.workers.leases import Lease, lease_path, newest_generation, parse_lease

Status = Literal["waiting", "running", "finished", "failed"]


@dataclass(frozen=True)
class CellState:
    """The state of a cell; `running` may also be a lease of a worker that is gone."""

    cell: str
    status: Status
    generation: int  # of the newest lease, 0 without
    lease: Lease | None  # the newest
    failures: tuple[Failure, ...]  # failed attempts


def read_states(directory: Path, cells: Sequence[str]) -> list[CellState]:
    """Return the states of cells, in the order of `cells`."""
    return [read_state(directory, cell) for cell in cells]


def read_state(directory: Path, cell: str) -> CellState:
    """Return the state of a cell."""
    path = cell_directory(directory, cell)
    names = shared_directory.names(path)
    generation = newest_generation(names)
    text = shared_directory.read(lease_path(path, generation)) if generation else None
    lease = parse_lease(text)
    failures = read_failures(path, names)
    status: Status = "waiting"
    if RESULT in names:
        status = "finished"
    elif FAILURE in names:
        status = "failed"
    elif generation and not (lease and lease.is_released):
        status = "running"
    return CellState(cell, status, generation, lease, failures)
