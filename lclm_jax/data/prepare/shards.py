"""Prepared examples on disk: ArrayRecord shards, one example a record packed by msgpack, each beside an index of lengths.

`<source>.<split>-<number>.arrayrecord` holds the examples, `....index.npz` what rows are planned from: `starts` [n + 1] and
`table` [sections, 3], the tables of all examples (`lclm_jax.data.records.sections`) joined. It also has a
checksum of every example, `crc32` [n], and the manifest has the index's own: an example that is
read is the one that was written, whichever files were exchanged since.
"""

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from lclm_jax.data.records import Section
from lclm_jax.data.records.sections import flatten_sections, split_sections
from lclm_jax.data.rows.parse import Raw
from lclm_jax.errors import UserError
from lclm_jax.files.checksums import hash_file

HELD_OUT = 50  # one document in so many is never trained on
SPLITS = ("train", "held")
MANIFEST = "manifest.json"
REJECTIONS = "rejections.jsonl"  # every refused row of all sources
REMEDY = (
    "bring the file back as it was (manifest.json has its sha256) or prepare again, then start "
    "again to continue"
)
Entry = Mapping[str, Any]  # what a manifest says of a shard


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


def unpack(packed: bytes) -> tuple[Raw, list[Section]]:
    fields: dict[str, Any] = msgpack.unpackb(packed)
    table = np.frombuffer(fields["table"], "<i4").reshape(-1, 3)
    return json.loads(fields["raw"]), split_sections(
        np.frombuffer(fields["tokens"], "<i4"), table.tolist()
    )


class ShardWriter:
    """Writes a shard and its index, whole or not at all: they take their names when it is closed."""

    def __init__(self, path: Path):
        self.path, self.unfinished = path, path.with_suffix(".unfinished")
        self.writer = ArrayRecordWriter(str(self.unfinished), "group_size:1")
        self.starts, self.tables = [0], [np.zeros((0, 3), np.int32)]
        self.checksums: list[int] = []

    def add(self, raw: Raw, sections: Sequence[Section]):
        tokens, table = flatten_sections(sections)
        packed = pack(raw, tokens, table)
        self.writer.write(packed)
        self.checksums.append(zlib.crc32(packed))
        self.tables.append(table)
        self.starts.append(self.starts[-1] + len(table))

    def close(self) -> dict[str, Any]:
        """Returns the shard's entry in a manifest."""
        self.writer.close()
        table = np.concatenate(self.tables)
        index = index_path(self.path)
        starts, checksums = np.array(self.starts, np.int64), np.array(self.checksums, np.uint32)
        np.savez(index, starts=starts, table=table, crc32=checksums)
        digest = hash_file(self.unfinished)
        self.unfinished.rename(self.path)
        return {
            "file": self.path.name,
            "examples": len(self.starts) - 1,
            "tokens": int(table[:, 0].sum()),
            "bytes": self.path.stat().st_size,
            "sha256": digest,
            "index_sha256": hash_file(index),
        }


@dataclass(frozen=True)
class Index:
    """The indexes of several shards, joined."""

    starts: np.ndarray  # [n + 1]
    table: np.ndarray  # [sections, 3]
    crc32: np.ndarray  # [n], -1 where an earlier version has kept none

    def describes(self, i: int, packed: bytes, sections: Sequence[Section]) -> bool:
        """Whether a record is example `i`."""
        found = [(len(one.tokens), int(one.role), one.ratio or 0) for one in sections]
        rows = self.table[self.starts[i] : self.starts[i + 1]]
        same = found == [tuple(row) for row in rows.tolist()]
        return same and int(self.crc32[i]) in (-1, zlib.crc32(packed))


def read_index(shards: Iterable[tuple[Path, Entry]]) -> Index:
    """The index of several shards, each with its entry in the manifest.

    Raises DamagedError for an index that is damaged, and for one of another shard.
    """
    starts, tables = [np.zeros(1, np.int64)], [np.zeros((0, 3), np.int32)]
    checksums, rows = [np.zeros(0, np.int64)], 0
    for shard, entry in shards:
        first, table, crc32 = _read_one(shard, entry.get("index_sha256"))
        examples, tokens = len(first) - 1, int(table[:, 0].sum())
        if (examples, tokens) != (entry["examples"], entry["tokens"]):
            raise DamagedError(
                f"{index_path(shard)} is the index of another shard: expected {entry['examples']} "
                f"examples of {entry['tokens']} tokens, got {examples} of {tokens}; {REMEDY}"
            )
        starts.append(first[1:] + rows)
        tables.append(table)
        checksums.append(crc32)
        rows += len(table)
    return Index(np.concatenate(starts), np.concatenate(tables), np.concatenate(checksums))


def _read_one(shard: Path, sha256: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    index = index_path(shard)
    try:
        content = index.read_bytes()
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError("it is not as it was written")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            starts, table = arrays["starts"], arrays["table"]
            crc32 = arrays.get("crc32", np.full(len(starts) - 1, -1))
        whole = starts.ndim == 1 and table.ndim == 2 and table.shape[1] == 3 and len(starts)
        if not whole or starts[0] or starts[-1] != len(table) or (np.diff(starts) < 0).any():
            raise ValueError("its arrays do not fit each other")
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, EOFError, OSError) as error:
        raise DamagedError(
            f"{index} is damaged ({error}); bring it back as it was, or prepare again, then start "
            "again to continue"
        ) from error
    return starts, table, crc32
