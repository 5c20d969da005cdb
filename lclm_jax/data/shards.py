"""Prepared examples on disk: ArrayRecord shards, one example a record packed by msgpack, each beside an index of lengths.

`<source>.<split>-<number>.arrayrecord` holds the examples, `....index.npz` what rows are planned from: `starts` [n + 1] and
`table` [stretches, 3], the tables of all examples (`lclm_jax.data.stretches`) joined.
"""

import hashlib
import json
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from lclm_jax.checksums import hash_file
from lclm_jax.data.rows import Raw
from lclm_jax.data.stretches import Stretch, flatten, split
from lclm_jax.errors import UserError

HELD_OUT = 50  # one document in so many is never trained on
SPLITS = ("train", "held")
MANIFEST = "manifest.json"
REJECTIONS = "rejections.jsonl"  # every refused row of all sources


class DamagedError(UserError, OSError):
    """A file of prepared data that is not as it was written."""


def shard_path(directory: str | Path, source: str, split: str, number: int = 0) -> Path:
    return Path(directory) / f"{source}.{split}-{number:05d}.arrayrecord"


def index_path(shard: Path) -> Path:
    return shard.with_suffix(".index.npz")


def find_shards(directory: str | Path, source: str, split: str) -> list[Path]:
    return sorted(Path(directory).glob(f"{source}.{split}-[0-9]*.arrayrecord"))


def split_of(text: str) -> str:
    """ "held" for the documents set aside, chosen by a hash of their text, else "train"."""
    digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
    return "held" if int.from_bytes(digest[:8], "little") % HELD_OUT == 0 else "train"


def pack(raw: Raw, tokens: np.ndarray, table: np.ndarray) -> bytes:
    fields = {
        "raw": json.dumps(raw),
        "tokens": tokens.astype("<i4").tobytes(),
        "table": table.astype("<i4").tobytes(),
    }
    return bytes(msgpack.packb(fields) or b"")


def unpack(packed: bytes) -> tuple[Raw, list[Stretch]]:
    fields: dict[str, Any] = msgpack.unpackb(packed)
    table = np.frombuffer(fields["table"], "<i4").reshape(-1, 3)
    return json.loads(fields["raw"]), split(np.frombuffer(fields["tokens"], "<i4"), table.tolist())


class ShardWriter:
    """Writes a shard and its index, whole or not at all: they take their names when it is closed."""

    def __init__(self, path: Path):
        self.path, self.unfinished = path, path.with_suffix(".unfinished")
        self.writer = ArrayRecordWriter(str(self.unfinished), "group_size:1")
        self.starts, self.tables = [0], [np.zeros((0, 3), np.int32)]

    def add(self, raw: Raw, stretches: Sequence[Stretch]):
        tokens, table = flatten(stretches)
        self.writer.write(pack(raw, tokens, table))
        self.tables.append(table)
        self.starts.append(self.starts[-1] + len(table))

    def close(self) -> dict[str, Any]:
        """Returns what a manifest says of the shard."""
        self.writer.close()
        table = np.concatenate(self.tables)
        np.savez(index_path(self.path), starts=np.array(self.starts, np.int64), table=table)
        digest = hash_file(self.unfinished)
        self.unfinished.rename(self.path)
        return {
            "file": self.path.name,
            "examples": len(self.starts) - 1,
            "tokens": int(table[:, 0].sum()),
            "sha256": digest,
        }


def read_index(shards: Iterable[Path]) -> tuple[np.ndarray, np.ndarray]:
    """`starts` and `table` of several shards joined. Raises DamagedError for an index that is damaged."""
    starts, tables, rows = [np.zeros(1, np.int64)], [np.zeros((0, 3), np.int32)], 0
    for shard in shards:
        try:
            with np.load(index_path(shard), allow_pickle=False) as index:
                starts.append(index["starts"][1:] + rows)
                tables.append(index["table"])
                rows += len(tables[-1])
        except (zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
            raise DamagedError(
                f"{index_path(shard)} is damaged ({error}); bring it back as it was, or remove {shard.name} and prepare again, "
                "then start again to continue"
            ) from error
    return np.concatenate(starts), np.concatenate(tables)
