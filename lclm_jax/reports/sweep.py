"""Tables of a sweep: what it will cost, and how far its workers are."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

from rich.table import Table
from rich.text import Text

from lclm_jax.sweeps.cells import Sweep
from lclm_jax.sweeps.plan import PlannedCell, flops_spread
from lclm_jax.sweeps.status import follow_states, training_progress
from lclm_jax.sweeps.workers.states import CellState, Status

STATUSES: tuple[Status, ...] = get_args(Status)
MAX_REASON = 100  # characters of a failure


def plan_table(plan: Sequence[PlannedCell]) -> Table:
    """Return a row for every cell, and their sums."""
    table = Table(
        title=f"{len(plan)} cells; FLOPs differ by up to {100 * flops_spread(plan):.1f} %"
    )
    table.add_column("cell")
    for column in ("encoder", "decoder", "FLOPs", "chip-hours", "fits"):
        table.add_column(column, justify="right")
    for cell in plan:
        table.add_row(
            cell.cell.name,
            f"{cell.encoder_parameters:,}",
            f"{cell.decoder_parameters:,}",
            f"{cell.flops:.3g}",
            "" if cell.chip_hours is None else f"{cell.chip_hours:,.3g}",
            {None: "", True: "yes", False: "no"}[cell.fits],
        )
    hours = [cell.chip_hours for cell in plan if cell.chip_hours is not None]
    total = f"{sum(hours):,.3g}" if hours else ""
    table.add_row("together", "", "", f"{sum(cell.flops for cell in plan):.3g}", total, "")
    return table


def status_tables(sweep: Sweep, directory: Path) -> Iterator[Table]:
    """Yield the table of states every few seconds until all cells are finished or failed."""
    progress = partial(training_progress, sweep, directory)
    for states in follow_states(sweep, directory):
        yield states_table(states, progress)


def states_table(
    states: Sequence[CellState], progress: Callable[[str], str] = lambda cell: ""
) -> Table:
    """Return a row for every cell: its status, progress, attempts, worker, and last failure.

    `progress` returns how far the training of a running cell is.
    """
    counts = {name: sum(state.status == name for state in states) for name in STATUSES}
    table = Table(title=", ".join(f"{count} {name}" for name, count in counts.items() if count))
    for column in ("cell", "status", "progress", "failed attempts", "worker", "last failure"):
        table.add_column(column)
    for state in states:
        running = state.lease if state.status == "running" else None
        table.add_row(
            state.cell,
            state.status,
            progress(state.cell) if running else "",
            str(len(state.failures) or ""),
            f"{running.host}, process {running.pid}" if running else "",
            shorten(state.failures[-1].reason) if state.failures else "",
        )
    return table


def shorten(reason: str) -> Text:
    """Return the first and the last line of a reason: how a cell ended, and its last words."""
    lines = reason.splitlines()
    return Text("; ".join(dict.fromkeys([*lines[:1], *lines[-1:]]))[:MAX_REASON])
