"""Workers that share the cells of a sweep, and coordinate through a directory alone.

A worker knows a cell by its name and by the command that trains it. Nothing here starts JAX, which
would take the devices of a cell.
"""

from lclm_jax.sweeps.workers.child import end_with_parent
from lclm_jax.sweeps.workers.follower import Follower
from lclm_jax.sweeps.workers.host import find_host
from lclm_jax.sweeps.workers.intervals import Intervals
from lclm_jax.sweeps.workers.states import CellState, read_states
from lclm_jax.sweeps.workers.stop_signal import StopSignal
from lclm_jax.sweeps.workers.worker import MAX_ATTEMPTS, Worker

__all__ = [
    "MAX_ATTEMPTS",
    "CellState",
    "Follower",
    "Intervals",
    "StopSignal",
    "Worker",
    "end_with_parent",
    "find_host",
    "read_states",
]
