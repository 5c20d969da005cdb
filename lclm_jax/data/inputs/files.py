"""Units of the input as numbered rows, with a rejection in place of each unreadable one.

Formats: JSON lines, JSON lists, CSV, Parquet, ArrayRecord, plain text, source trees and
repositories. All but Parquet and ArrayRecord may be compressed (`decompression`).
"""

import os
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

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

MAX_TEXT_BYTES = 256 << 20  # of a line or of a text file
SKIP_BYTES = 1 << 20  # read at a time of a line that is too long
PICKLE_PROTOCOL = b"\x80"  # first byte of a pickle of protocol 2 and later


@dataclass(frozen=True)
class InputRow:
    """A record of an input file.

    Attributes:
        file: its path.
        number: position of the record in the file, from 0; 0 for a text file or repository.
        fields: values by name.
        ignored: names of fields in the file that were not read.
    """

    file: str
    number: int
    fields: dict[str, Any]
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rejection:
    """A record that cannot be used, the rest of a damaged file, or a file that is not read.

    Attributes:
        file: its path.
        number: position of the record in the file, from 0.
        reason: "encoding", "json", "csv", "corrupt", "pickle", "empty", "too long", a reason of
            `UnreadError` or `RowError`, or "error" for any other exception.
        detail: what was expected and what came.
    """

    file: str
    number: int
    reason: str
    detail: str


def read_unit(unit: Unit, wanted: Collection[str] | None = None) -> Iterator[InputRow | Rejection]:
    """Yield the rows of a unit in order.

    A record that cannot be read, and the rest of a damaged file, are one Rejection each. `wanted`
    names the needed fields, for formats that can skip others.
    """
    if unit.form == "unread":
        yield from (file for file in unread_files(unit) if file.reason != "other split")
        return
    read: Callable[[Unit], Iterator[InputRow | Rejection]] = {
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
        for record in read(unit):
            number = record.number + 1
            yield record
        if number is None and unit.start == 0 and unit.stop is None:
            yield Rejection(unit.files[0], 0, "empty", "expected rows, got none")
    except (UserError, MemoryError):  # a library is missing, or memory is full
        raise
    except Exception as error:  # noqa: BLE001 - the other files are read whatever one causes
        yield Rejection(
            unit.files[0], number or 0, "corrupt", f"cannot be read further: {error!r:.300}"
        )


def unread_files(unit: Unit) -> list[Rejection]:
    """Return the files of a unit of form "unread".

    They include those of other splits, which `read_unit` does not yield: they are left out on
    purpose.
    """
    return [
        Rejection(file, 0, reason, detail)
        for file, (reason, detail) in zip(unit.files, unit.reasons, strict=True)
    ]


def _read_texts(unit: Unit) -> Iterator[InputRow | Rejection]:
    for name in unit.files:
        text = _decode(Path(name))
        if isinstance(text, Rejection):
            yield text
        elif not text.strip():
            yield Rejection(name, 0, "empty", "expected text, got none")
        else:
            yield InputRow(name, 0, {"text": text})


def _decode(path: Path) -> str | Rejection:
    """Return the text of a file with its line ends, without a byte order mark."""
    name = str(path)
    try:
        with open_decompressed(path) as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    except (OSError, EOFError) as error:
        return Rejection(name, 0, "corrupt", f"expected a file that can be read: {error}")
    if len(data) > MAX_TEXT_BYTES:
        return Rejection(name, 0, "too long", f"expected a text of at most {MAX_TEXT_BYTES} bytes")
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


def _read_repository(unit: Unit) -> Iterator[InputRow | Rejection]:
    directory, parts = Path(unit.files[0]), []
    texts, unread = find_texts(directory)
    for unread_file in unread:
        yield Rejection(str(unread_file.path), 0, unread_file.reason, unread_file.detail)
    for file, _ in texts:
        text = _decode(file)
        if isinstance(text, Rejection):
            yield text
        elif text.strip():
            name = os.fsencode(file.relative_to(directory).as_posix()).decode("utf-8", "replace")
            parts.append(f"# FILE {name}\n{text}")
    if parts:
        yield InputRow(str(directory), 0, {"text": "\n\n".join(parts)})
    else:
        yield Rejection(str(directory), 0, "empty", "expected text files, got none")


def _read_lines(unit: Unit) -> Iterator[InputRow | Rejection]:
    name, number = unit.files[0], unit.first
    try:
        with open_text(Path(name)) as file:
            if unit.start:
                file.seek(unit.start - 1)  # a line that began earlier belongs to the unit before
                _finish_line(file)
            while (unit.stop is None or file.tell() < unit.stop) and (
                line := file.readline(MAX_TEXT_BYTES + 1)
            ):
                if len(line) > MAX_TEXT_BYTES and not line.endswith(b"\n"):
                    yield Rejection(
                        name,
                        number,
                        "too long",
                        f"expected a line of at most {MAX_TEXT_BYTES} bytes",
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
    """Move to where the next line begins."""
    while (part := file.readline(SKIP_BYTES)) and not part.endswith(b"\n"):
        pass


def _parse_line(name: str, number: int, line: bytes) -> InputRow | Rejection:
    try:
        return _row(name, number, parse_line(line))
    except JsonError as error:
        return Rejection(name, number, error.reason, error.detail)


def _row(name: str, number: int, value: Any) -> InputRow | Rejection:
    """Return a JSON object as a row."""
    if not isinstance(value, dict):
        return Rejection(
            name, number, "json", f"expected a JSON object, got {type(value).__name__}"
        )
    return InputRow(name, number, value)


def _read_json(unit: Unit) -> Iterator[InputRow | Rejection]:
    name, number = unit.files[0], 0
    try:
        for value in read_values(Path(name), MAX_TEXT_BYTES):
            yield _row(name, number, value)
            number += 1
    except JsonError as error:
        yield Rejection(name, number, error.reason, error.detail)
    except UnicodeDecodeError as error:
        yield Rejection(name, number, "encoding", f"expected UTF-8: {error}")
    except (OSError, EOFError) as error:
        yield Rejection(name, number, "corrupt", f"expected a whole file: {error}")


def _read_csv(unit: Unit) -> Iterator[InputRow | Rejection]:
    name, number = unit.files[0], 0
    try:
        for row in read_table(Path(name), MAX_TEXT_BYTES):
            if isinstance(row, CsvError):
                yield Rejection(name, number, row.reason, row.detail)
            else:
                yield InputRow(name, number, row)
            number += 1
    except (OSError, EOFError, ValueError) as error:
        yield Rejection(name, number, "csv", f"expected a whole table: {error}")


def _read_parquet(unit: Unit, wanted: Collection[str] | None) -> Iterator[InputRow | Rejection]:
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
) -> InputRow | Rejection:
    """Return a row with its pickled cells read; a single pickled dict is the row itself."""
    needed = KNOWN_FIELDS.intersection(fields) or fields
    pickled, values = [], dict(fields)
    for key, cell in fields.items():
        if isinstance(cell, bytes) and cell.startswith(PICKLE_PROTOCOL):
            try:
                values[key] = load_plain(cell)
                pickled.append(key)
            except PickleError as error:
                if key in needed:
                    return Rejection(name, number, "pickle", str(error))

    present = [key for key, value in values.items() if value is not None]
    if len(present) == 1 and present == pickled and _is_record(values[present[0]]):
        values = values[present[0]]
    return InputRow(name, number, values, ignored)


def _is_record(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _read_records(unit: Unit) -> Iterator[InputRow | Rejection]:
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


def _parse_record(name: str, number: int, record: bytes) -> InputRow | Rejection:
    """Return the row of a record in msgpack or JSON."""
    try:
        fields = msgpack.unpackb(record)
    except (ValueError, RecursionError, msgpack.UnpackException):
        fields = None
    return (
        InputRow(name, number, fields) if _is_record(fields) else _parse_line(name, number, record)
    )
