"""Sweeps: many training runs, shared by workers that coordinate through a directory alone.

A sweep is a list of cells, of which each is a training run. This room knows a cell by its name and
by the command that trains it. Nothing here imports JAX, which would take the devices of a cell.
"""

from lclm_jax.sweeps.child import end_with_parent
from lclm_jax.sweeps.follower import Follower
from lclm_jax.sweeps.intervals import Intervals
from lclm_jax.sweeps.states import CellState, read_states
from lclm_jax.sweeps.stop_signal import StopSignal
from lclm_jax.sweeps.worker import Worker

__all__ = [
    "CellState",
    "Follower",
    "Intervals",
    "StopSignal",
    "Worker",
    "end_with_parent",
    "read_states",
]
