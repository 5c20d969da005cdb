"""Prepared examples on disk: ArrayRecord shards, each beside an index of lengths.

A shard `<source>.<split>-<number>.arrayrecord` holds one example a record, packed with msgpack.
Its index, `<source>.<split>-<number>.index.npz`, has what packing is planned from: `starts` [n + 1]
and `table` [sections, 3], the joined tables of all examples (`lclm_jax.data.records.sections`), and
`crc32` [n], a checksum of every example. The manifest has the checksum of the index itself, so an
example that is read is the one that was written, even if files were exchanged since.
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
from lclm_jax.data.rows.raw_examples import RawExample
from lclm_jax.errors import UserError
from lclm_jax.files.atomic import UNFINISHED, publish, unfinished_file
from lclm_jax.files.checksums import hash_file

HELD_OUT_EVERY = 50  # documents whose hash is a multiple of it are held out
SPLITS = ("train", "held")
MANIFEST = "manifest.json"
REJECTIONS = "rejections.jsonl"  # every refused row of all sources
NO_CRC32 = -1  # in place of a checksum, for indexes of earlier versions
REMEDY = (
    "bring the file back as it was (manifest.json has its sha256) or prepare again, then start "
    "again to continue"
)
Entry = Mapping[str, Any]  # a shard's entry in the manifest


class DamagedError(UserError, OSError):
    """A file of prepared data that is not as it was written."""


def shard_path(directory: str | Path, source: str, split: str, number: int = 0) -> Path:
    """Return the path of a shard."""
    return Path(directory) / f"{source}.{split}-{number:05d}.arrayrecord"


def index_path(shard: Path) -> Path:
    """Return the path of a shard's index."""
    return shard.with_suffix(".index.npz")


def split_of(text: str) -> str:
    """Return "held" for the documents that are held out, by a hash of their text, else "train"."""
    digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
    is_held_out = int.from_bytes(digest[:8], "little") % HELD_OUT_EVERY == 0
    return "held" if is_held_out else "train"


def pack(raw: RawExample, tokens: np.ndarray, table: np.ndarray) -> bytes:
    """Return an example as a record.

    Args:
        raw: the example as text.
        tokens: token ids [tokens] of all sections.
        table: [sections, 3], as `flatten_sections` makes it.
    """
    fields = {
        "raw": json.dumps(raw),
        "tokens": tokens.astype("<i4").tobytes(),
        "table": table.astype("<i4").tobytes(),
    }
    return bytes(msgpack.packb(fields) or b"")


def unpack(packed: bytes) -> tuple[RawExample, list[Section]]:
    """Return the text and the sections of a record."""
    fields: dict[str, Any] = msgpack.unpackb(packed)
    tokens = np.frombuffer(fields["tokens"], "<i4")
    table = np.frombuffer(fields["table"], "<i4").reshape(-1, 3)
    return json.loads(fields["raw"]), split_sections(tokens, table.tolist())


class ShardWriter:
    """Writes a shard and its index, which get their names when it is closed."""

    def __init__(self, path: Path):
        self.path, self.unfinished = path, path.with_suffix(UNFINISHED)
        self.writer = ArrayRecordWriter(str(self.unfinished), "group_size:1")
        self.starts, self.tables = [0], [np.zeros((0, 3), np.int32)]
        self.checksums: list[int] = []

    def add(self, raw: RawExample, sections: Sequence[Section]):
        """Append an example."""
        tokens, table = flatten_sections(sections)
        packed = pack(raw, tokens, table)
        self.writer.write(packed)
        self.checksums.append(zlib.crc32(packed))
        self.tables.append(table)
        self.starts.append(self.starts[-1] + len(table))

    def close(self) -> dict[str, Any]:
        """Finish both files and return the shard's entry in the manifest."""
        self.writer.close()
        table = np.concatenate(self.tables)
        index = index_path(self.path)
        arrays = {
            "starts": np.array(self.starts, np.int64),
            "table": table,
            "crc32": np.array(self.checksums, np.uint32),
        }
        with unfinished_file(index) as unfinished, unfinished.open("wb") as file:
            np.savez(file, **arrays)
        digest = hash_file(self.unfinished)
        publish(self.unfinished, self.path)
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
    """The joined indexes of several shards, of n examples in all.

    Attributes:
        starts: [n + 1], where the sections of each example begin in `table`.
        table: [sections, 3], tokens, role and ratio of each section.
        crc32: [n], a checksum of each example, NO_CRC32 where the index has none.
    """

    starts: np.ndarray
    table: np.ndarray
    crc32: np.ndarray

    def describes(self, i: int, packed: bytes, sections: Sequence[Section]) -> bool:
        """Return whether a record, and the sections in it, are those of example `i`."""
        rows = self.table[self.starts[i] : self.starts[i + 1]]
        expected = [tuple(row) for row in rows.tolist()]
        actual = [(len(s.tokens), int(s.role), s.ratio or 0) for s in sections]
        return actual == expected and int(self.crc32[i]) in (NO_CRC32, zlib.crc32(packed))


def read_index(shards: Iterable[tuple[Path, Entry]]) -> Index:
    """Return the joined index of several shards, each with its entry in the manifest.

    Raises DamagedError for an index that is damaged or belongs to another shard.
    """
    starts, tables = [np.zeros(1, np.int64)], [np.zeros((0, 3), np.int32)]
    checksums, rows = [np.zeros(0, np.int64)], 0
    for shard, entry in shards:
        shard_starts, table, crc32 = _read_shard_index(shard, entry.get("index_sha256"))
        examples, tokens = len(shard_starts) - 1, int(table[:, 0].sum())
        if (examples, tokens) != (entry["examples"], entry["tokens"]):
            raise DamagedError(
                f"{index_path(shard)} is the index of another shard: expected {entry['examples']} "
                f"examples of {entry['tokens']} tokens, got {examples} of {tokens}; {REMEDY}"
            )
        starts.append(shard_starts[1:] + rows)
        tables.append(table)
        checksums.append(crc32)
        rows += len(table)
    return Index(np.concatenate(starts), np.concatenate(tables), np.concatenate(checksums))


def _read_shard_index(shard: Path, sha256: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return starts, table and checksums of one shard."""
    index = index_path(shard)
    try:
        content = index.read_bytes()
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError("it is not as it was written")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            starts, table = arrays["starts"], arrays["table"]
            crc32 = arrays.get("crc32", np.full(len(starts) - 1, NO_CRC32))
        if not _is_consistent(starts, table):
            raise ValueError("its arrays do not fit each other")
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, EOFError, OSError) as error:
        raise DamagedError(
            f"{index} is damaged ({error}); bring it back as it was, or prepare again, then start "
            "again to continue"
        ) from error
    return starts, table, crc32


def _is_consistent(starts: np.ndarray, table: np.ndarray) -> bool:
    """Return whether `starts` divides the rows of `table` among examples."""
    if starts.ndim != 1 or len(starts) == 0 or table.ndim != 2 or table.shape[1] != 3:
        return False
    covers_table = starts[0] == 0 and starts[-1] == len(table)
    return bool(covers_table and (np.diff(starts) >= 0).all())
