"""The devices of a model, for calls from several threads."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import jax
from jax.sharding import Mesh


class DeviceQueue:
    """The devices of a mesh, on which one thread at a time dispatches programs.

    Programs that communicate between devices must be queued on all of them in one order. A turn
    lasts for a call, not for an answer, so answers of several threads advance side by side.
    """

    def __init__(self, mesh: Mesh):
        self.mesh = mesh
        self._lock = threading.RLock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for the other threads, and bring the mesh into scope."""
        with self._lock, jax.set_mesh(self.mesh):
            yield
