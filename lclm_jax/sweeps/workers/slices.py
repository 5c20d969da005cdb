"""Slices of several hosts: host 0 claims cells and tells the others which one it trains."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lclm_jax.sweeps.workers import shared_directory
from lclm_jax.sweeps.workers.layout import slices_directory


@dataclass(frozen=True)
class Assignment:
    """A lease of a cell that all hosts of a slice train."""

    cell: str
    generation: int

    def to_dict(self) -> dict[str, Any]:
        """Return the values of the assignment's JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Assignment":
        """Return the assignment of `to_dict`. Raises TypeError for other keys."""
        return cls(**values)


def publish(directory: Path, slice_name: str, assignment: Assignment):
    """Tell the hosts of a slice what they train, until its lease ends or they train another."""
    path = _path(directory, slice_name)
    shared_directory.make(path.parent)
    shared_directory.replace(path, json.dumps(assignment.to_dict()))


def read_assignment(directory: Path, slice_name: str) -> Assignment | None:
    """Return the newest assignment of a slice, or None for a damaged or missing file."""
    try:
        return Assignment.from_dict(
            json.loads(shared_directory.read(_path(directory, slice_name)) or "")
        )
    except (ValueError, TypeError):
        return None


def _path(directory: Path, slice_name: str) -> Path:
    return slices_directory(directory) / f"{slice_name}.json"
