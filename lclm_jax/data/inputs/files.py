"""Units of the input as numbered rows; what cannot be read is named and the rest still comes.

Formats: JSON lines, JSON lists, CSV, Parquet, ArrayRecord, plain text, source trees and
repositories; all but Parquet and ArrayRecord may be compressed (`lclm_jax.data.inputs.decompression`).
"""

import os
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgpack

from lclm_jax.data.inputs.csv_rows import CsvError, read_table
from lclm_jax.data.inputs.decompression import encoding_of, open_decompressed, open_text
from lclm_jax.data.inputs.json_rows import JsonError, parse_line, read_values
from lclm_jax.data.inputs.libraries import require
from lclm_jax.data.inputs.parquet import ParquetRows, UnreadableRow
from lclm_jax.data.inputs.pickles import PickleError, load_plain
from lclm_jax.data.inputs.units import Unit, find_texts, open_records
from lclm_jax.data.rows.field_names import KNOWN_FIELDS
from lclm_jax.errors import UserError

LONGEST = 256 << 20  # bytes of a line or of a text file


@dataclass(frozen=True)
class Row:
    """One record as it stands in a file."""

    file: str
    number: int  # record in the file, from 0: a line, row, record; 0 for a text file or repository
    fields: dict[str, Any]
    ignored: tuple[str, ...] = ()  # names of the fields that the file has and that are not read


@dataclass(frozen=True)
class Rejection:
    """A record that cannot be used, a file from some record on, or one that is not read at all."""

    file: str
    number: int
    # Of few words: encoding, json, csv, corrupt, pickle, empty, too long, those of
    # `lclm_jax.data.inputs.formats.UnreadError` and of `lclm_jax.data.rows.row_errors.RowError`; or error, for any
    # other exception.
    reason: str
    detail: str  # what was expected and what came


def read_unit(unit: Unit, wanted: Collection[str] | None = None) -> Iterator[Row | Rejection]:
    """Its rows in order; a record that cannot be read, or the rest of a damaged file, is one
    Rejection.

    `wanted` names the fields that are needed, for formats that can leave others unread.
    """
    if unit.form == "unread":
        yield from (one for one in unread_files(unit) if one.reason != "other split")
        return
    read: Callable[[Unit], Iterator[Row | Rejection]] = {
        "text": _read_texts,
        "repository": _read_repository,
        "jsonl": _read_lines,
        "json": _read_json,
        "csv": _read_csv,
        "parquet": lambda unit: _read_parquet(unit, wanted),
        "arrayrecord": _read_records,
    }[unit.form]
    number = None
    try:
        for found in read(unit):
            number = found.number + 1
            yield found
        if number is None and unit.start == 0 and unit.stop is None:
            yield Rejection(unit.files[0], 0, "empty", "expected rows, got none")
    except (UserError, MemoryError):  # a library is missing, or the machine is at its end
        raise
    except Exception as error:  # noqa: BLE001 - whatever a file causes, the others are read
        yield Rejection(
            unit.files[0], number or 0, "corrupt", f"cannot be read further: {error!r:.300}"
        )


def unread_files(unit: Unit) -> list[Rejection]:
    """The files of a unit of form "unread", those of other splits too: these are left out by
    choice, so reading the unit gives no rejection for them.
    """
    return [
        Rejection(file, 0, reason, detail)
        for file, (reason, detail) in zip(unit.files, unit.reasons, strict=True)
    ]


def _read_texts(unit: Unit) -> Iterator[Row | Rejection]:
    for name in unit.files:
        text = _decode(Path(name))
        if isinstance(text, Rejection):
            yield text
        elif not text.strip():
            yield Rejection(name, 0, "empty", "expected text, got none")
        else:
            yield Row(name, 0, {"text": text})


def _decode(path: Path) -> str | Rejection:
    """The text of a file as it stands, line ends too, without a byte order mark."""
    name = str(path)
    try:
        with open_decompressed(path) as file:
            data = file.read(LONGEST + 1)
    except (OSError, EOFError) as error:
        return Rejection(name, 0, "corrupt", f"expected a file that can be read: {error}")
    if len(data) > LONGEST:
        return Rejection(name, 0, "too long", f"expected a text of at most {LONGEST} bytes")
    encoding = encoding_of(data)
    if encoding is None and b"\0" in data:
        return Rejection(name, 0, "not text", f"expected text, got a zero at {data.index(0)}")
    try:
        return data.decode(encoding or "utf-8-sig")
    except UnicodeDecodeError as error:
        return Rejection(
            name,
            0,
            "encoding",
            f"expected {encoding or 'UTF-8'}, got byte {data[error.start]:#x} at {error.start}",
        )


def _read_repository(unit: Unit) -> Iterator[Row | Rejection]:
    directory, parts = Path(unit.files[0]), []
    texts, unread = find_texts(directory)
    for one in unread:
        yield Rejection(str(one.path), 0, one.reason, one.detail)
    for file, _ in texts:
        text = _decode(file)
        if isinstance(text, Rejection):
            yield text
        elif text.strip():
            name = os.fsencode(file.relative_to(directory).as_posix()).decode("utf-8", "replace")
            parts.append(f"# FILE {name}\n{text}")
    if parts:
        yield Row(str(directory), 0, {"text": "\n\n".join(parts)})
    else:
        yield Rejection(str(directory), 0, "empty", "expected text files, got none")


def _read_lines(unit: Unit) -> Iterator[Row | Rejection]:
    name, number = unit.files[0], unit.first
    try:
        with open_text(Path(name)) as file:
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
        return _row(name, number, parse_line(line))
    except JsonError as error:
        return Rejection(name, number, error.reason, error.detail)


def _row(name: str, number: int, value: Any) -> Row | Rejection:
    """The row that a value of JSON is."""
    if not isinstance(value, dict):
        return Rejection(
            name, number, "json", f"expected a JSON object, got {type(value).__name__}"
        )
    return Row(name, number, value)


def _read_json(unit: Unit) -> Iterator[Row | Rejection]:
    name, number = unit.files[0], 0
    try:
        for value in read_values(Path(name), LONGEST):
            yield _row(name, number, value)
            number += 1
    except JsonError as error:
        yield Rejection(name, number, error.reason, error.detail)
    except UnicodeDecodeError as error:
        yield Rejection(name, number, "encoding", f"expected UTF-8: {error}")
    except (OSError, EOFError) as error:
        yield Rejection(name, number, "corrupt", f"expected a whole file: {error}")


def _read_csv(unit: Unit) -> Iterator[Row | Rejection]:
    name, number = unit.files[0], 0
    try:
        for row in read_table(Path(name), LONGEST):
            if isinstance(row, CsvError):
                yield Rejection(name, number, row.reason, row.detail)
            else:
                yield Row(name, number, row)
            number += 1
    except (OSError, EOFError, ValueError) as error:
        yield Rejection(name, number, "csv", f"expected a whole table: {error}")


def _read_parquet(unit: Unit, wanted: Collection[str] | None) -> Iterator[Row | Rejection]:
    name = unit.files[0]
    rows = ParquetRows(Path(name), slice(unit.start, unit.stop), wanted)
    try:
        for row in rows:
            if isinstance(row, UnreadableRow):
                yield Rejection(name, rows.number, row.reason, row.detail)
            else:
                yield _unpickle(name, rows.number, row, tuple(rows.ignored))
    except (OSError, ValueError, require("pyarrow").ArrowException) as error:
        yield Rejection(
            name,
            rows.number,
            "corrupt",
            f"expected a whole Parquet file, got a damaged one: {error}",
        )


def _unpickle(
    name: str, number: int, fields: dict[str, Any], ignored: tuple[str, ...]
) -> Row | Rejection:
    """A row whose cells may be pickled; a pickled dict that is alone is the row."""
    needed = KNOWN_FIELDS.intersection(fields) or fields
    packed, read = [], dict(fields)
    for key, cell in fields.items():
        if isinstance(cell, bytes) and cell[:1] == b"\x80":
            try:
                read[key] = load_plain(cell)
                packed.append(key)
            except PickleError as error:
                if key in needed:
                    return Rejection(name, number, "pickle", str(error))
    given = [key for key, value in read.items() if value is not None]
    alone = len(given) == 1 and given == packed and _is_record(read[given[0]])
    return Row(name, number, read[given[0]] if alone else read, ignored)


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
    except (ValueError, RecursionError, msgpack.UnpackException):
        fields = None
    return Row(name, number, fields) if _is_record(fields) else _parse_line(name, number, record)
