"""Shards of prepared data, found by their names."""

from pathlib import Path


def find_shards(directory: str | Path, source: str, split: str) -> list[Path]:
    """Return the shards of a split of a source, in order."""
    return sorted(Path(directory).glob(f"{source}.{split}-[0-9]*.arrayrecord"))
