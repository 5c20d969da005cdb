"""Prepared sources: any example by its number, with its tokens or with its lengths alone."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import grain
import numpy as np

from lclm_jax.config import ConfigError
from lclm_jax.data.records import Section
from lclm_jax.data.records.sections import flatten_sections, split_sections
from lclm_jax.data.rows.raw_examples import RawExample, tokenize_example
from lclm_jax.data.shards import (
    MANIFEST,
    REMEDY,
    DamagedError,
    Entry,
    index_path,
    read_index,
    unpack,
)
from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.files.checksums import FileChecksum
from lclm_jax.files.reading import read_json

CACHED_TABLES = 4096  # examples whose lengths under another tokenizer are kept in memory


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """Return the manifest that `launch.prepare` wrote into a directory.

    Raises FileNotFoundError, with the command that makes one, where there is none, and DamagedError
    for a file that is not a manifest.
    """
    file = Path(directory) / MANIFEST
    if not file.exists():
        raise FileNotFoundError(
            f"{file}: no prepared data here; make it by python -m launch.prepare "
            f"--recipe configs/recipes/NAME.py --input NAME=PATH --out {directory}, "
            "or set data.directory"
        )
    try:
        manifest = read_json(file)
        for source in manifest["sources"].values():
            for entry in source["shards"]:
                _check_file_name(entry["file"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{file} is not a manifest: {error}; prepare again") from error
    return manifest


def _check_file_name(name: str):
    if Path(name).name != name:
        raise ValueError(f"{name!r} is not the name of a file in its directory")


def listed_files(directory: str | Path) -> Iterator[FileChecksum]:
    """Yield every shard and index of a prepared directory with its sha256.

    Manifests of earlier versions have none for indexes; these are left out.
    """
    for source in read_manifest(directory)["sources"].values():
        for entry in source["shards"]:
            shard = Path(directory) / entry["file"]
            yield shard, entry["sha256"]
            if "index_sha256" in entry:
                yield index_path(shard), entry["index_sha256"]


def fingerprint(entries: Sequence[Entry]) -> dict[str, Any]:
    """Identify the content of a source: its shards, its examples, and a hash over all shards."""
    digests = "".join(str(entry.get("sha256")) for entry in entries)
    return {
        "shards": len(entries),
        "examples": sum(entry["examples"] for entry in entries),
        "sha256": hashlib.sha256(digests.encode()).hexdigest(),
    }


class PreparedSource:
    """The examples of a source in one split ("train" or "held"), in the order of its shards.

    Tokens come from the shards where this tokenizer made them; another tokenizer reads the raw
    examples anew, which is slower. `shapes` has the same examples with ranges in place of tokens.
    Raises ConfigError for a source or shard that is missing and DamagedError for a damaged one.
    """

    def __init__(self, directory: str | Path, source: str, split: str, tokenizer: Tokenizer):
        manifest = read_manifest(directory)
        if source not in manifest["sources"]:
            listed = ", ".join(manifest["sources"])
            raise ConfigError(f"{directory} has no source {source!r}; it has {listed}")
        self.name, self.tokenizer = source, tokenizer
        self.kind: str = manifest["sources"][source]["kind"]
        entries = _split_entries(manifest["sources"][source]["shards"], split)
        self.shards = [Path(directory) / entry["file"] for entry in entries]
        _check_present(self.shards, directory)
        for shard, entry in zip(self.shards, entries, strict=True):
            _check_size(shard, entry)
        self.index = read_index(zip(self.shards, entries, strict=True))
        self.starts, self.table = self.index.starts, self.index.table
        self.fingerprint = fingerprint(entries)
        self._ends = np.cumsum([entry["examples"] for entry in entries])
        self.same_tokenizer = manifest["tokenizer"]["fingerprint"] == tokenizer.fingerprint

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> list[Section]:
        raw, sections = self._read(int(index))
        return sections if self.same_tokenizer else tokenize_example(raw, self.tokenizer)

    def __repr__(self) -> str:
        return f"PreparedSource({self.name}, {len(self)} examples)"

    @cached_property
    def shapes(self) -> "ExampleShapes":
        """The same examples with ranges in place of tokens."""
        return ExampleShapes(self)

    def raw(self, i: int) -> RawExample:
        """Return example i as it was before it was tokenized."""
        return self._read(int(i))[0]

    def where(self, i: int) -> str:
        """Return an example's shard and number there: "docs.train-00000.arrayrecord:17"."""
        shard = int(np.searchsorted(self._ends, i, side="right"))
        first = int(self._ends[shard - 1]) if shard else 0
        return f"{self.shards[shard].name}:{i - first}"

    def _read(self, i: int) -> tuple[RawExample, list[Section]]:
        try:
            packed = self._records[i]
            raw, sections = unpack(packed)
        except (RuntimeError, ValueError) as error:  # for a record of another hash
            raise DamagedError(f"{self.where(i)} cannot be read: {error}; {REMEDY}") from error
        if not self.index.describes(i, packed, sections):
            raise DamagedError(f"{self.where(i)} is not the example of its index; {REMEDY}")
        return raw, sections

    @cached_property
    def _records(self) -> grain.sources.ArrayRecordDataSource:
        try:
            records = grain.sources.ArrayRecordDataSource([str(shard) for shard in self.shards])
        except RuntimeError:  # it does not name the shard
            for shard in self.shards:
                _check_opens(shard)
            raise
        count = len(records)  # pyright: ignore[reportArgumentType]  # unlike on Windows
        if count != len(self):
            raise ConfigError(
                f"expected {len(self)} examples in the shards of {self.name}, got {count}; "
                "prepare again"
            )
        return records


def _split_entries(entries: Sequence[Entry], split: str) -> list[Entry]:
    chosen = (entry for entry in entries if entry["split"] == split)
    return sorted(chosen, key=lambda entry: entry["file"])


def _check_present(shards: Sequence[Path], directory: str | Path):
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise ConfigError(
            f"expected the shards {', '.join(missing)} in {directory}, got none of that name; "
            "prepare again"
        )


def _check_opens(shard: Path):
    try:
        grain.sources.ArrayRecordDataSource([str(shard)])
    except RuntimeError as error:
        raise DamagedError(f"{shard.name} cannot be opened: {error}; {REMEDY}") from error


def _check_size(shard: Path, entry: Mapping[str, Any]):
    """Raise DamagedError for a shard whose size is not its manifest's; older ones list none."""
    expected, size = entry.get("bytes"), shard.stat().st_size
    if expected is not None and size != expected:
        raise DamagedError(
            f"{shard.name} cannot be opened: expected {expected} bytes, got {size}; {REMEDY}"
        )


class ExampleShapes:
    """The examples of a source as sections whose tokens are ranges."""

    def __init__(self, source: PreparedSource):
        self.source = source
        self._retokenized_table = lru_cache(maxsize=CACHED_TABLES)(
            lambda i: flatten_sections(source[i])[1]
        )

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> list[Section]:
        table = self._table(int(index))
        return split_sections(range(int(np.sum(table[:, 0]))), table.tolist())

    def __repr__(self) -> str:
        return f"ExampleShapes({self.source.name})"

    def _table(self, i: int) -> np.ndarray:
        source = self.source
        if source.same_tokenizer:
            return source.table[source.starts[i] : source.starts[i + 1]]
        return self._retokenized_table(i)
