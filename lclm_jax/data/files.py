"""Units of the input as numbered rows; what cannot be read is named and the rest still comes.

Formats: jsonl (plain, .zst, .gz), Parquet, ArrayRecord, plain text, source trees and repositories.
"""

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgpack

from lclm_jax.data.pickles import PickleError, load_plain
from lclm_jax.data.units import Unit, open_records, require, texts

LONGEST = 256 << 20  # bytes of a line or of a text file
PIECE = 1 << 12  # bytes of zstd at a time: each may hold a thousand times as many


@dataclass(frozen=True)
class Row:
    """One record as it stands in a file."""

    file: str
    number: int  # record in the file, from 0: a line, row, record; 0 for a text file or repository
    fields: dict[str, Any]


@dataclass(frozen=True)
class Rejection:
    """A record that cannot be used, or a file from some record on."""

    file: str
    number: int
    reason: str  # a few fixed words; here encoding, json, corrupt, pickle, empty, too long
    detail: str  # what was expected and what came


def read_unit(unit: Unit) -> Iterator[Row | Rejection]:
    """Its rows in order; a record that cannot be read, or the rest of a damaged file, is one Rejection."""
    if unit.form == "text":
        for file in unit.files:
            yield from _read_text(Path(file), file)
    elif unit.form == "repository":
        yield from _read_repository(Path(unit.files[0]))
    else:
        read: Callable[[Unit], Iterator[Row | Rejection]] = {
            "jsonl": _read_lines,
            "parquet": _read_parquet,
            "arrayrecord": _read_records,
        }[unit.form]
        yield from read(unit)


def _read_text(path: Path, name: str) -> Iterator[Row | Rejection]:
    text, problem = _decode(path, name)
    if problem:
        yield problem
    elif not text.strip():
        yield Rejection(name, 0, "empty", "expected text, got none")
    else:
        yield Row(name, 0, {"text": text})


def _decode(path: Path, name: str) -> tuple[str, Rejection | None]:
    size = path.stat().st_size
    if size > LONGEST:
        return "", Rejection(
            name, 0, "too long", f"expected a text of at most {LONGEST} bytes, got {size}"
        )
    try:
        return path.read_bytes().decode("utf-8"), None  # as it stands: line ends, too
    except UnicodeDecodeError as error:
        return "", Rejection(
            name,
            0,
            "encoding",
            f"expected UTF-8, got byte {error.object[error.start]:#x} at {error.start}",
        )


def _read_repository(directory: Path) -> Iterator[Row | Rejection]:
    parts = []
    for file in texts(directory):
        text, problem = _decode(file, str(file))
        if problem:
            yield problem
        elif text.strip():
            parts.append(f"# FILE {file.relative_to(directory).as_posix()}\n{text}")
    if parts:
        yield Row(str(directory), 0, {"text": "\n\n".join(parts)})
    else:
        yield Rejection(str(directory), 0, "empty", "expected text files, got none")


def _read_lines(unit: Unit) -> Iterator[Row | Rejection]:
    name, number = unit.files[0], unit.first
    try:
        with _open(name) as file:
            if unit.start:
                file.seek(unit.start - 1)  # a line that began before is of the unit before
                _finish_line(file)
            while (unit.stop is None or file.tell() < unit.stop) and (
                line := file.readline(LONGEST + 1)
            ):
                if len(line) > LONGEST and not line.endswith(b"\n"):
                    yield Rejection(
                        name, number, "too long", f"expected a line of at most {LONGEST} bytes"
                    )
                    _finish_line(file)
                elif line.strip():
                    yield _parse_line(name, number, line)
                number += 1
    except (OSError, EOFError, ValueError, zlib.error) as error:
        yield Rejection(
            name,
            number,
            "corrupt",
            f"expected a whole file, got one that breaks off or is damaged: {error}",
        )


def _finish_line(file: BinaryIO):
    """Goes to where the next line begins."""
    while (part := file.readline(1 << 20)) and not part.endswith(b"\n"):
        pass


def _parse_line(name: str, number: int, line: bytes) -> Row | Rejection:
    try:
        fields = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Rejection(
            name,
            number,
            "encoding",
            f"expected UTF-8, got byte {line[error.start]:#x} at {error.start} of the line",
        )
    except (ValueError, RecursionError) as error:  # too many digits are a plain ValueError
        return Rejection(
            name, number, "json", f"expected a JSON object, got {line[:40]!r}: {error}"
        )
    if not isinstance(fields, dict):
        return Rejection(
            name, number, "json", f"expected a JSON object, got {type(fields).__name__}"
        )
    return Row(name, number, fields)


def _open(name: str) -> Any:
    """The bytes of a file, decompressed by its suffix."""
    if name.lower().endswith(".gz"):
        return gzip.open(name)
    if name.lower().endswith(".zst"):
        return io.BufferedReader(_Zstd(Path(name).open("rb")), 1 << 20)
    return Path(name).open("rb")


class _Zstd(io.RawIOBase):
    """Zstd frames as one stream, which says so when they break off; the library's own reader takes that for the end."""

    def __init__(self, file: BinaryIO):
        self.library = require("zstandard")
        self.decompressor = self.library.ZstdDecompressor()
        self.file, self.frame, self.ready = file, None, io.BytesIO()
        self.problem: OSError | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not (count := self.ready.readinto(buffer)):
            if self.problem:
                raise self.problem
            if not (block := self.file.read(PIECE)):
                if self.frame is not None and not self.frame.eof:
                    raise EOFError("the last zstd frame is not complete")
                return 0
            self._feed(block)
        return count

    def _feed(self, block: bytes):
        parts = []
        try:
            while block:
                if self.frame is None or self.frame.eof:
                    self.frame = self.decompressor.decompressobj()
                parts.append(self.frame.decompress(block))
                block = self.frame.unused_data if self.frame.eof else b""
        except self.library.ZstdError as error:
            self.problem = OSError(str(error))  # raised once what came before is given out
        self.ready = io.BytesIO(b"".join(parts))

    def close(self):
        self.file.close()
        super().close()


def _read_parquet(unit: Unit) -> Iterator[Row | Rejection]:
    name, number = unit.files[0], 0
    pyarrow, parquet = require("pyarrow"), require("pyarrow.parquet")
    try:
        with parquet.ParquetFile(name) as file:
            groups = range(file.num_row_groups)
            number = sum(file.metadata.row_group(i).num_rows for i in groups[: unit.start])
            for batch in file.iter_batches(
                batch_size=256, row_groups=list(groups[unit.start : unit.stop])
            ):
                for fields in _listed(batch):
                    if fields is None:
                        yield Rejection(
                            name, number, "encoding", "expected UTF-8, got a column that is not"
                        )
                    else:
                        yield _unpickle(name, number, fields)
                    number += 1
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        yield Rejection(
            name, number, "corrupt", f"expected a whole Parquet file, got a damaged one: {error}"
        )


def _listed(batch: Any) -> list[dict[str, Any] | None]:
    """The rows of a batch; None for one whose text is not UTF-8."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        return (
            [None]
            if len(batch) == 1
            else [row for i in range(len(batch)) for row in _listed(batch.slice(i, 1))]
        )


def _unpickle(name: str, number: int, fields: dict[str, Any]) -> Row | Rejection:
    """A row whose cells may be pickled; a pickled dict that is alone is the row."""
    packed = [
        key for key, cell in fields.items() if isinstance(cell, bytes) and cell[:1] == b"\x80"
    ]
    try:
        read = fields | {key: load_plain(fields[key]) for key in packed}
    except PickleError as error:
        return Rejection(name, number, "pickle", str(error))
    held = [key for key, value in read.items() if value is not None]
    alone = len(held) == 1 and held == packed and _is_record(read[held[0]])
    return Row(name, number, read[held[0]] if alone else read)


def _is_record(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _read_records(unit: Unit) -> Iterator[Row | Rejection]:
    name, number = unit.files[0], unit.start
    try:
        reader = open_records(name)
        for number in range(unit.start, reader.num_records() if unit.stop is None else unit.stop):
            yield _parse_record(name, number, bytes(reader.read([number])[0]))
    except (OSError, ValueError, RuntimeError, IndexError) as error:
        yield Rejection(
            name,
            number,
            "corrupt",
            f"expected a whole ArrayRecord file, got a damaged one: {error}",
        )


def _parse_record(name: str, number: int, record: bytes) -> Row | Rejection:
    """Msgpack or JSON, whichever the record is."""
    try:
        fields = msgpack.unpackb(record)
    except (ValueError, msgpack.UnpackException):
        fields = None
    return Row(name, number, fields) if _is_record(fields) else _parse_line(name, number, record)
