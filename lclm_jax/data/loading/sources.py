"""Prepared sources, opened: any example by its number, with tokens or, for planning rows, with lengths alone."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import grain
import numpy as np

from lclm_jax.config import ConfigError
from lclm_jax.data.prepare.shards import (
    MANIFEST,
    REMEDY,
    DamagedError,
    Entry,
    index_path,
    read_index,
    unpack,
)
from lclm_jax.data.records.stretches import Stretch, flatten, split
from lclm_jax.data.rows.parse import Raw, tokenise
from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.files.checksums import Listed
from lclm_jax.files.reading import read_json


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """What `launch.prepare` says of a directory. Raises FileNotFoundError with the command that makes one."""
    file = Path(directory) / MANIFEST
    if not file.exists():
        raise FileNotFoundError(
            f"{file}: no prepared data here; make it by python -m launch.prepare --recipe configs/recipe_*.py "
            f"--input NAME=PATH --out {directory}, or set data.directory"
        )
    try:
        manifest = read_json(file)
        for source in manifest["sources"].values():
            for entry in source["shards"]:
                if Path(entry["file"]).name != entry["file"]:
                    raise ValueError(
                        f"{entry['file']!r} is not the name of a file in its directory"
                    )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{file} is not a manifest: {error}; prepare again") from error
    return manifest


def listed_files(directory: str | Path) -> Iterator[Listed]:
    """Every shard and index of a prepared directory with its sha256; older indexes have none."""
    for source in read_manifest(directory)["sources"].values():
        for entry in source["shards"]:
            shard = Path(directory) / entry["file"]
            yield shard, entry["sha256"]
            if "index_sha256" in entry:
                yield index_path(shard), entry["index_sha256"]


def fingerprint(entries: Sequence[Entry]) -> dict[str, Any]:
    """Identifies the content of a source: its shards, its examples, and a hash over all shards."""
    digests = "".join(str(entry.get("sha256")) for entry in entries)
    return {
        "shards": len(entries),
        "examples": sum(entry["examples"] for entry in entries),
        "sha256": hashlib.sha256(digests.encode()).hexdigest(),
    }


class Prepared:
    """The examples of a source, in the order of its shards.

    Tokens are those of the files where this tokenizer made them; another one reads the raw examples again, which is
    slower. `shapes` gives the same examples as ranges instead of tokens.
    """

    def __init__(self, directory: str | Path, source: str, split: str, tokenizer: Tokenizer):
        manifest = read_manifest(directory)
        if source not in manifest["sources"]:
            raise ConfigError(
                f"{directory} has no source {source!r}; it has {', '.join(manifest['sources'])}"
            )
        self.name, self.tokenizer = source, tokenizer
        self.kind: str = manifest["sources"][source]["kind"]
        entries = sorted(
            (entry for entry in manifest["sources"][source]["shards"] if entry["split"] == split),
            key=lambda entry: entry["file"],
        )
        self.shards = [Path(directory) / entry["file"] for entry in entries]
        if missing := [shard.name for shard in self.shards if not shard.is_file()]:
            raise ConfigError(
                f"expected the shards {', '.join(missing)} in {directory}, got none of that name; "
                "prepare again"
            )
        for shard, entry in zip(self.shards, entries, strict=True):
            _check_size(shard, entry)
        self.index = read_index(zip(self.shards, entries, strict=True))
        self.starts, self.table = self.index.starts, self.index.table
        self.fingerprint = fingerprint(entries)
        self._ends = np.cumsum([entry["examples"] for entry in entries])
        self.same_tokenizer = manifest["tokenizer"]["fingerprint"] == tokenizer.fingerprint

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def _records(self) -> grain.sources.ArrayRecordDataSource:
        try:
            records = grain.sources.ArrayRecordDataSource([str(shard) for shard in self.shards])
        except RuntimeError:  # which does not say which shard
            for shard in self.shards:
                _check_opens(shard)
            raise
        if len(records) != len(self):
            raise ConfigError(
                f"expected {len(self)} examples in the shards of {self.name}, got {len(records)}; prepare again"
            )
        return records

    def raw(self, i: int) -> Raw:
        return self._read(int(i))[0]

    def _read(self, i: int) -> tuple[Raw, list[Stretch]]:
        try:
            packed = self._records[i]
            raw, stretches = unpack(packed)
        except (RuntimeError, ValueError) as error:  # of a record whose hash is another
            raise DamagedError(f"{self.where(i)} cannot be read: {error}; {REMEDY}") from error
        if not self.index.describes(i, packed, stretches):
            raise DamagedError(f"{self.where(i)} is not the example of its index; {REMEDY}")
        return raw, stretches

    def __getitem__(self, i: int) -> list[Stretch]:
        raw, stretches = self._read(int(i))
        return stretches if self.same_tokenizer else tokenise(raw, self.tokenizer)

    def where(self, i: int) -> str:
        """The shard an example lies in and its number there, as `docs.train-00000.arrayrecord:17`."""
        shard = int(np.searchsorted(self._ends, i, side="right"))
        return f"{self.shards[shard].name}:{i - int(self._ends[shard - 1]) if shard else i}"

    def __repr__(self) -> str:
        return f"Prepared({self.name}, {len(self)} examples)"

    @cached_property
    def shapes(self) -> "Shapes":
        return Shapes(self)


def _check_opens(shard: Path):
    """Raises DamagedError for a shard that cannot be opened."""
    try:
        grain.sources.ArrayRecordDataSource([str(shard)])
    except RuntimeError as error:
        raise DamagedError(f"{shard.name} cannot be opened: {error}; {REMEDY}") from error


def _check_size(shard: Path, entry: Mapping[str, Any]):
    """Raises DamagedError for a shard of another size than its manifest says; older ones do not."""
    expected, size = entry.get("bytes"), shard.stat().st_size
    if expected is not None and size != expected:
        raise DamagedError(
            f"{shard.name} cannot be opened: expected {expected} bytes, got {size}; {REMEDY}"
        )


class Shapes:
    """The examples of a source as stretches of ranges."""

    def __init__(self, prepared: Prepared):
        self.prepared = prepared
        self._table_of = lru_cache(maxsize=4096)(lambda i: flatten(prepared[i])[1])

    def __len__(self) -> int:
        return len(self.prepared)

    def __getitem__(self, i: int) -> list[Stretch]:
        prepared, i = self.prepared, int(i)
        rows = (
            prepared.table[prepared.starts[i] : prepared.starts[i + 1]]
            if prepared.same_tokenizer
            else self._table_of(i)
        )
        return split(range(int(np.sum(rows[:, 0]))), rows.tolist())

    def __repr__(self) -> str:
        return f"Shapes({self.prepared.name})"
