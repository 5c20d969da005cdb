"""Input files of any format as numbered rows, read a unit at a time; what cannot be read is named and the rest still comes.

Formats: jsonl (plain, .zst, .gz), Parquet, ArrayRecord, plain text, source trees and repositories.
"""

import gzip
import importlib
import io
import json
import zlib
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
HEAD = 8192  # bytes looked at; text has no zero among them
PIECE = 1 << 12  # bytes of zstd at a time: each may hold a thousand times as many
BINARY = (
    *(".pyc", ".so", ".dll", ".exe", ".o", ".a", ".class", ".jar", ".whl", ".zip", ".gz", ".zst", ".bz2", ".xz", ".tar", ".tgz"),
    *(".7z", ".png", ".jpg", ".jpeg", ".gif", ".webp", ".ico", ".pdf", ".woff", ".woff2", ".ttf", ".mp3", ".mp4", ".npy", ".npz"),
)


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
    first: int = 0  # number of the first line that begins in it, for jsonl


def find_units(pattern: str, size: int = UNIT) -> list[Unit]:
    """The units of a file, a glob or a directory, in the order of their paths.

    `repository:PATH` or another form before the path says what it is; else suffixes tell, and in a directory without data files
    a project's marker (.git, pyproject.toml and the like): a repository is one document. `hf:owner/name@revision` is a dataset
    of the hub. Raises FileNotFoundError when nothing is found, naming what was looked for.
    """
    form, colon, place = pattern.partition(":")
    if colon and form == "hf":
        form, place = "", _download(place)
    elif not colon or form not in FORMS:
        form, place = "", pattern
    paths = [Path(place)] if place and Path(place).exists() else _matches(place, form)
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


def _matches(pattern: str, form: str) -> list[Path]:
    """What a glob finds, without what is below a directory that it finds too, and without binary files."""
    # Path.glob takes no absolute patterns.
    paths = {Path(path) for path in glob(pattern, recursive=True)}  # noqa: PTH207
    tops = sorted(path for path in paths if not paths.intersection(path.parents))
    return [path for path in tops if form or not path.is_file() or _form_of(path) != "text" or _is_text(path)]


def _units_of(path: Path, form: str, size: int) -> list[Unit]:
    if form == "repository":
        return [Unit(form, (str(path),))] if path.is_dir() else []
    if path.is_file():
        if not form and path.suffix.lower() == ".json" and _head(path).lstrip().startswith(b"["):
            raise UserError(f"{path}: expected one object a line, got one list; write it as .jsonl, or say text:{path}")
        return _cut(path, form or _form_of(path), size)
    if not path.is_dir():
        return []
    wanted = {"": tuple(DATA), "text": ()}.get(form, (form,))
    data = [file for file in _walk(path) if _form_of(file) in wanted]
    if data or form in DATA:
        return [unit for file in data for unit in _cut(file, _form_of(file), size)]
    if not form and _is_project(path):
        return [Unit("repository", (str(path),))]
    projects = [] if form else [child for child in _visible(path) if _is_directory(child) and _is_project(child)]
    rest = [file for file in _texts(path) if not any(project in file.parents for project in projects)]
    return [*(Unit("repository", (str(project),)) for project in projects), *_group(rest, size)]


def _form_of(path: Path) -> str:
    name = path.name.lower()
    return next((form for form, suffixes in DATA.items() if name.endswith(suffixes)), "text")


def _is_project(path: Path) -> bool:
    return any((path / marker).exists() for marker in PROJECT)


def _visible(directory: Path) -> list[Path]:
    """What a directory holds, in order, without what is hidden and build products."""
    return sorted(path for path in directory.iterdir() if not path.name.startswith(".") and path.name not in SKIPPED)


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()  # a link could lead in a circle, or elsewhere


def _walk(directory: Path) -> Iterator[Path]:
    """Files below a directory in the order of their paths, links to files among them: a hub's download is made of such."""
    for path in _visible(directory):
        if _is_directory(path):
            yield from _walk(path)
        elif path.is_file():
            yield path


def _texts(directory: Path) -> Iterator[Path]:
    """The text files below a directory; links that lead out of it are not followed."""
    top = directory.resolve()
    for path in _walk(directory):
        if (not path.is_symlink() or path.resolve().is_relative_to(top)) and _is_text(path):
            yield path


def _is_text(path: Path) -> bool:
    return path.suffix.lower() not in BINARY and b"\0" not in _head(path)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD)


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
    try:
        if form == "jsonl" and not name.lower().endswith((".zst", ".gz")):
            return _cut_lines(path, size)
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


def _cut_lines(path: Path, size: int) -> list[Unit]:
    """Ranges of bytes. Their lines are counted here, in one pass: else each worker would read all that lies before its own."""
    if path.stat().st_size <= size:
        return [Unit("jsonl", (str(path),))]
    units, start, lines, whole = [], 0, 0, True
    with path.open("rb") as file:
        while block := file.read(size):
            units.append(Unit("jsonl", (str(path),), start, start + size, lines if whole else lines + 1))
            start, lines, whole = start + size, lines + block.count(b"\n"), block.endswith(b"\n")
    return units


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
        return path.read_bytes().decode("utf-8"), None  # as it stands: line ends, too
    except UnicodeDecodeError as error:
        return "", Rejection(name, 0, "encoding", f"expected UTF-8, got byte {error.object[error.start]:#x} at {error.start}")


def _read_repository(directory: Path) -> Iterator[Row | Rejection]:
    parts = []
    for file in _texts(directory):
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
            while (unit.stop is None or file.tell() < unit.stop) and (line := file.readline(LONGEST + 1)):
                if len(line) > LONGEST and not line.endswith(b"\n"):
                    yield Rejection(name, number, "too long", f"expected a line of at most {LONGEST} bytes")
                    _finish_line(file)
                elif line.strip():
                    yield _parse_line(name, number, line)
                number += 1
    except (OSError, EOFError, ValueError, zlib.error) as error:
        yield Rejection(name, number, "corrupt", f"expected a whole file, got one that breaks off or is damaged: {error}")


def _finish_line(file: BinaryIO):
    """Goes to where the next line begins."""
    while (part := file.readline(1 << 20)) and not part.endswith(b"\n"):
        pass


def _parse_line(name: str, number: int, line: bytes) -> Row | Rejection:
    try:
        fields = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Rejection(
            name, number, "encoding", f"expected UTF-8, got byte {line[error.start]:#x} at {error.start} of the line"
        )
    except (ValueError, RecursionError) as error:  # too many digits are a plain ValueError
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
        self.library = _require("zstandard")
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
    pyarrow, parquet = _require("pyarrow"), _require("pyarrow.parquet")
    try:
        with parquet.ParquetFile(name) as file:
            groups = range(file.num_row_groups)
            number = sum(file.metadata.row_group(i).num_rows for i in groups[: unit.start])
            for batch in file.iter_batches(batch_size=256, row_groups=list(groups[unit.start : unit.stop])):
                for fields in _listed(batch):
                    if fields is None:
                        yield Rejection(name, number, "encoding", "expected UTF-8, got a column that is not")
                    else:
                        yield _unpickle(name, number, fields)
                    number += 1
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        yield Rejection(name, number, "corrupt", f"expected a whole Parquet file, got a damaged one: {error}")


def _listed(batch: Any) -> list[dict[str, Any] | None]:
    """The rows of a batch; None for one whose text is not UTF-8."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        return [None] if len(batch) == 1 else [row for i in range(len(batch)) for row in _listed(batch.slice(i, 1))]


def _unpickle(name: str, number: int, fields: dict[str, Any]) -> Row | Rejection:
    """A row whose cells may be pickled; a pickled dict that is alone is the row."""
    packed = [key for key, cell in fields.items() if isinstance(cell, bytes) and cell[:1] == b"\x80"]
    try:
        read = fields | {key: load_plain(fields[key]) for key in packed}
    except PickleError as error:
        return Rejection(name, number, "pickle", str(error))
    held = [key for key, value in read.items() if value is not None]
    alone = len(held) == 1 and held == packed and _is_record(read[held[0]])
    return Row(name, number, read[held[0]] if alone else read)


def _is_record(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


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
    try:
        fields = msgpack.unpackb(record)
    except (ValueError, msgpack.UnpackException):
        fields = None
    return Row(name, number, fields) if _is_record(fields) else _parse_line(name, number, record)


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
