"""Names of the files in the directory of a sweep, for their writers and every reader."""

from pathlib import Path

RESULT = "result.json"  # written by the training of a cell: the cell is finished
FAILURE = "failure.json"  # why a cell will not be tried again


def cells_directory(directory: Path) -> Path:
    """Return the directory that has one directory for each cell."""
    return directory / "cells"


def cell_directory(directory: Path, cell: str) -> Path:
    """Return the directory of a cell: its leases, its result, and whatever its training writes."""
    return cells_directory(directory) / cell


def log_name(host: int) -> str:
    """Return the name of the file with the output of a cell's training on a host of its slice.

    Each host has its own, because network file systems mix up what two hosts append.
    """
    return f"log-{host}.txt" if host else "log.txt"


def slices_directory(directory: Path) -> Path:
    """Return the directory that has one file for each slice of several hosts."""
    return directory / "slices"
