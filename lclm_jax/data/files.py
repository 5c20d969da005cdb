"""Input files of any format as numbered rows, read a unit at a time; what cannot be read is named and the rest still comes.

Formats: jsonl (plain, .zst, .gz), Parquet, ArrayRecord, plain text, source trees and repositories.
"""

import gzip
import importlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, BinaryIO

import msgpack

from lclm_jax.data.pickles import PickleError, load_plain
from lclm_jax.errors import UserError

UNIT = 16 << 20  # bytes of input a worker reads at a time
LONGEST = 256 << 20  # bytes of a line or of a text file
DATA = {
    "jsonl": (".jsonl", ".ndjson", ".jsonl.zst", ".ndjson.zst", ".jsonl.gz", ".ndjson.gz"),
    "parquet": (".parquet",),
    "arrayrecord": (".arrayrecord", ".array_record"),
}
FORMS = (*DATA, "text", "repository")
PROJECT = (".git", ".hg", "pyproject.toml", "setup.py", "package.json", "Cargo.toml", "go.mod", "CMakeLists.txt", "pom.xml")
SKIPPED = {"__pycache__", "node_modules", "site-packages", "build", "dist"}  # and everything hidden
BINARY = 8192  # bytes looked at; text has no zero among them


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


@dataclass(frozen=True)
class Unit:
    """What one worker reads at a time. Units depend on the input alone."""

    form: str  # one of FORMS
    files: tuple[str, ...]  # one file, or several small ones of text; a directory for a repository
    start: int = 0  # bytes of jsonl, row groups of Parquet, records of ArrayRecord
    stop: int | None = None  # None: to the end


def find_units(pattern: str, size: int = UNIT) -> list[Unit]:
    """The units of a file, a glob or a directory, in the order of their paths.

    `repository:PATH` or another form before the path says what it is; else suffixes tell, and in a directory without data files
    a project's marker (.git, pyproject.toml and the like): a repository is one document. `hf:owner/name@revision` is a dataset
    of the hub. Raises FileNotFoundError when nothing is found, naming what was looked for.
    """
    form, colon, place = pattern.partition(":")
    if colon and form == "hf":
        return find_units(_download(place), size)
    if not colon or form not in FORMS:
        form, place = "", pattern
    # Path.glob takes no absolute patterns.
    paths = sorted(Path(path) for path in glob(place, recursive=True)) or [Path(place)]  # noqa: PTH207
    units = [unit for path in paths for unit in _units_of(path, form, size)]
    if not units:
        known = ", ".join(suffix for suffixes in DATA.values() for suffix in suffixes)
        raise FileNotFoundError(f"{pattern}: no input there; expected text, a source tree, or files that end in {known}")
    return units


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


def _units_of(path: Path, form: str, size: int) -> list[Unit]:
    if form == "repository":
        return [Unit(form, (str(path),))] if path.is_dir() else []
    if path.is_file():
        return _cut(path, form or _form_of(path), size)
    if not path.is_dir():
        return []
    files = list(_walk(path))
    data = [file for file in files if _form_of(file) != "text"]
    if form not in ("", "text"):
        return [unit for file in files if _form_of(file) == form for unit in _cut(file, form, size)]
    if data and not form:
        return [unit for file in data for unit in _cut(file, _form_of(file), size)]
    if not form and _is_project(path):
        return [Unit("repository", (str(path),))]
    projects = [] if form else sorted(child for child in path.iterdir() if child.is_dir() and _is_project(child))
    rest = [file for file in files if not any(project in file.parents for project in projects) and _is_text(file)]
    return [*(Unit("repository", (str(project),)) for project in projects), *_group(rest, size)]


def _form_of(path: Path) -> str:
    name = path.name.lower()
    return next((form for form, suffixes in DATA.items() if name.endswith(suffixes)), "text")


def _is_project(path: Path) -> bool:
    return any((path / marker).exists() for marker in PROJECT)


def _walk(directory: Path) -> Iterator[Path]:
    """Files below a directory in the order of their paths; hidden ones, build products and links to directories left out."""
    for path in sorted(directory.iterdir()):
        if path.name.startswith(".") or path.name in SKIPPED:
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)
        elif path.is_file():
            yield path


def _is_text(path: Path) -> bool:
    with path.open("rb") as file:
        return b"\0" not in file.read(BINARY)


def _group(files: Sequence[Path], size: int) -> list[Unit]:
    """Units of text files, each of about `size` bytes."""
    groups: list[list[str]] = []
    room = 0
    for file in files:
        bytes_ = file.stat().st_size
        if not groups or bytes_ > room:
            groups.append([])
            room = size
        groups[-1].append(str(file))
        room -= bytes_
    return [Unit("text", tuple(group)) for group in groups]


def _cut(path: Path, form: str, size: int) -> list[Unit]:
    """Units of one file; a file that cannot be opened is one unit, so that reading it says why."""
    name = str(path)
    if form == "jsonl" and path.suffix.lower() in (".jsonl", ".ndjson"):
        bounds = list(range(0, max(1, path.stat().st_size), size))
        return [Unit(form, (name,), start, start + size) for start in bounds]
    try:
        if form == "parquet":
            sizes = _group_sizes(path)
        elif form == "arrayrecord":
            count, total = _open_records(path).num_records(), path.stat().st_size
            sizes = [total // max(1, count)] * count
        else:
            return [Unit(form, (name,))]
    except (OSError, ValueError, RuntimeError):
        return [Unit(form, (name,))]
    units, start, taken = [], 0, 0
    for i, one in enumerate(sizes):
        if taken and taken + one > size:
            units.append(Unit(form, (name,), start, i))
            start, taken = i, 0
        taken += one
    return [*units, Unit(form, (name,), start, len(sizes))]


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
        return "", Rejection(name, 0, "too long", f"expected a text of at most {LONGEST} bytes, got {size}")
    try:
        return path.read_text(encoding="utf-8"), None
    except UnicodeDecodeError as error:
        return "", Rejection(name, 0, "encoding", f"expected UTF-8, got byte {error.object[error.start]:#x} at {error.start}")


def _read_repository(directory: Path) -> Iterator[Row | Rejection]:
    parts = []
    for file in _walk(directory):
        if not _is_text(file):
            continue
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
    name, number = unit.files[0], 0
    try:
        with _open(name) as file:
            if unit.start:
                number = _skip_to(file, unit.start)
            while (unit.stop is None or file.tell() < unit.stop) and (line := file.readline(LONGEST + 1)):
                if len(line) > LONGEST:
                    yield Rejection(name, number, "too long", f"expected a line of at most {LONGEST} bytes")
                    while line and not line.endswith(b"\n"):
                        line = file.readline(LONGEST)
                elif line.strip():
                    yield _parse_line(name, number, line)
                number += 1
    except (OSError, EOFError, ValueError, *_zstd_errors()) as error:
        yield Rejection(name, number, "corrupt", f"expected a whole file, got one that breaks off or is damaged: {error}")


def _skip_to(file: BinaryIO, start: int) -> int:
    """Goes to the first line that begins at `start` or after it; returns how many lines lie before."""
    file.seek(0)
    number, left, last = 0, start, b"\n"
    while left and (block := file.read(min(left, 1 << 20))):
        number, left, last = number + block.count(b"\n"), left - len(block), block[-1:]
    if last != b"\n":
        while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
            pass
        number += 1
    return number


def _parse_line(name: str, number: int, line: bytes) -> Row | Rejection:
    try:
        fields = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Rejection(
            name, number, "encoding", f"expected UTF-8, got byte {line[error.start]:#x} at {error.start} of the line"
        )
    except (json.JSONDecodeError, RecursionError) as error:
        return Rejection(name, number, "json", f"expected a JSON object, got {line[:40]!r}: {error}")
    if not isinstance(fields, dict):
        return Rejection(name, number, "json", f"expected a JSON object, got {type(fields).__name__}")
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
        self.file, self.frame, self.ready, self.given = file, None, b"", 0
        self.begin = _require("zstandard").ZstdDecompressor().decompressobj

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready:
            block = self.file.read(1 << 17)
            if not block:
                if self.frame is not None and not self.frame.eof:
                    raise EOFError("the last zstd frame is not complete")
                return 0
            self._feed(block)
        count = min(len(buffer), len(self.ready))
        buffer[:count], self.ready = self.ready[:count], self.ready[count:]
        self.given += count
        return count

    def _feed(self, block: bytes):
        parts = []
        while block:
            if self.frame is None or self.frame.eof:
                self.frame = self.begin()
            parts.append(self.frame.decompress(block))
            block = self.frame.unused_data if self.frame.eof else b""
        self.ready = b"".join(parts)

    def tell(self) -> int:
        return self.given

    def close(self):
        self.file.close()
        super().close()


def _zstd_errors() -> tuple[type[BaseException], ...]:
    try:
        return (importlib.import_module("zstandard").ZstdError,)
    except ImportError:
        return ()


def _read_parquet(unit: Unit) -> Iterator[Row | Rejection]:
    name, number = unit.files[0], 0
    pyarrow, parquet = _require("pyarrow"), _require("pyarrow.parquet")
    try:
        with parquet.ParquetFile(name) as file:
            groups = range(file.num_row_groups)
            number = sum(file.metadata.row_group(i).num_rows for i in groups[: unit.start])
            for batch in file.iter_batches(batch_size=256, row_groups=list(groups[unit.start : unit.stop])):
                for fields in batch.to_pylist():
                    yield _unpickle(name, number, fields)
                    number += 1
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        yield Rejection(name, number, "corrupt", f"expected a whole Parquet file, got a damaged one: {error}")


def _unpickle(name: str, number: int, fields: dict[str, Any]) -> Row | Rejection:
    """A row whose cells are pickled: a dict that is alone is the row."""
    try:
        read = {
            key: load_plain(cell) if isinstance(cell, bytes) and cell[:1] == b"\x80" else cell for key, cell in fields.items()
        }
    except PickleError as error:
        return Rejection(name, number, "pickle", str(error))
    held = [value for value in read.values() if value is not None]
    return Row(name, number, held[0] if len(held) == 1 and isinstance(held[0], dict) else read)


def _group_sizes(path: Path) -> list[int]:
    pyarrow = _require("pyarrow")
    try:
        with _require("pyarrow.parquet").ParquetFile(path) as file:
            return [file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)]
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from error


def _open_records(path: Path | str) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path))
    if not reader.ok():
        raise ValueError("its end or its index is missing")
    return reader


def _read_records(unit: Unit) -> Iterator[Row | Rejection]:
    name, number = unit.files[0], unit.start
    try:
        reader = _open_records(name)
        for number in range(unit.start, reader.num_records() if unit.stop is None else unit.stop):
            yield _parse_record(name, number, bytes(reader.read([number])[0]))
    except (OSError, ValueError, RuntimeError, IndexError) as error:
        yield Rejection(name, number, "corrupt", f"expected a whole ArrayRecord file, got a damaged one: {error}")


def _parse_record(name: str, number: int, record: bytes) -> Row | Rejection:
    """Msgpack or JSON, whichever the record is."""
    if not record.startswith(b"{"):
        try:
            fields = msgpack.unpackb(record)
        except (ValueError, msgpack.UnpackException) as error:
            return Rejection(name, number, "json", f"expected a JSON object or a msgpack map, got {record[:40]!r}: {error}")
        if isinstance(fields, dict) and all(isinstance(key, str) for key in fields):
            return Row(name, number, fields)
    return _parse_line(name, number, record)


def _require(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"reading this input needs {module.partition('.')[0]}: pip install 'lclm_jax[data]'") from error


def _download(name: str) -> str:
    import huggingface_hub

    repository, _, revision = name.partition("@")
    patterns = [f"*{suffix}" for suffixes in DATA.values() for suffix in suffixes]
    try:
        return huggingface_hub.snapshot_download(
            repository, repo_type="dataset", revision=revision or None, allow_patterns=patterns
        )
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise FileNotFoundError(f"hf:{name}: the dataset could not be had from the hub: {error}") from error
