"""Prepared examples on disk: one ArrayRecord file per source and split, one raw example a record, packed by msgpack."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grain
import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

Raw = dict[str, Any]
HELD_OUT = 50  # one document in so many is never trained on


def source_path(directory: str | Path, source: str, split: str) -> Path:
    return Path(directory) / f"{source}.{split}.arrayrecord"


def split_of(text: str) -> str:
    """ "held" for the documents set aside, chosen by a hash of their text, else "train"."""
    digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
    return "held" if int.from_bytes(digest[:8], "little") % HELD_OUT == 0 else "train"


def pack_raw(raw: Raw) -> bytes:
    """One raw example as bytes; token arrays become little-endian int32."""
    fields = {key: value.astype("<i4").tobytes() if key == "tokens" else value for key, value in raw.items()}
    return bytes(msgpack.packb(fields) or b"")


def unpack_raw(packed: bytes) -> Raw:
    raw = msgpack.unpackb(packed)
    if "tokens" in raw:
        raw["tokens"] = np.frombuffer(raw["tokens"], "<i4")
    return raw


def write_source(path: Path, examples: Iterable[Raw]) -> int:
    """Writes one file of examples, whole or not at all, and returns how many there were."""
    unfinished = path.with_suffix(".unfinished")
    writer = ArrayRecordWriter(str(unfinished), "group_size:1")
    count = 0
    for example in examples:
        writer.write(pack_raw(example))
        count += 1
    writer.close()
    unfinished.rename(path)
    return count


def open_source(directory: str | Path, source: str, split: str = "train") -> grain.sources.ArrayRecordDataSource:
    """Random access to the packed examples of a source. Raises FileNotFoundError naming the file and what makes it."""
    path = source_path(directory, source, split)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such source; prepare it first or set data.directory (now {directory})")
    return grain.sources.ArrayRecordDataSource(str(path))


def read_source(directory: str | Path, source: str, split: str) -> list[Raw]:
    """All examples of a small source."""
    packed = open_source(directory, source, split)
    return [unpack_raw(packed[i]) for i in range(len(packed))]
