"""Prepared sources, opened: any example by its number, with tokens or, for planning rows, with lengths alone."""

from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import grain
import numpy as np

from lclm_jax.config import ConfigError
from lclm_jax.data.rows import Raw, tokenise
from lclm_jax.data.shards import MANIFEST, DamagedError, find_shards, read_index, unpack
from lclm_jax.data.stretches import Stretch, flatten, split
from lclm_jax.data.tokens import Tokenizer
from lclm_jax.reading import read_json

REMEDY = "bring the file back as it was (manifest.json has its sha256) or prepare again, then start again to continue"


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """What `launch.prepare` says of a directory. Raises FileNotFoundError with the command that makes one."""
    file = Path(directory) / MANIFEST
    if not file.exists():
        raise FileNotFoundError(
            f"{file}: no prepared data here; make it by python -m launch.prepare --recipe configs/recipe_*.py "
            f"--input NAME=PATH --out {directory}, or set data.directory"
        )
    return read_json(file)


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
        self.shards = find_shards(directory, source, split)
        expected = [
            shard["file"]
            for shard in manifest["sources"][source]["shards"]
            if shard["split"] == split
        ]
        if [shard.name for shard in self.shards] != sorted(expected):
            raise ConfigError(
                f"expected the shards {', '.join(expected)} in {directory}, got {len(self.shards)}; prepare again"
            )
        self.starts, self.table = read_index(self.shards)
        counts = {
            shard["file"]: shard["examples"] for shard in manifest["sources"][source]["shards"]
        }
        self._ends = np.cumsum([counts[shard.name] for shard in self.shards])
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
        return self._read(i)[0]

    def _read(self, i: int) -> tuple[Raw, list[Stretch]]:
        try:
            return unpack(self._records[i])
        except RuntimeError as error:  # of a record whose hash is another
            raise DamagedError(f"{self.where(i)} cannot be read: {error}; {REMEDY}") from error

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
