"""What lies in the input, and the units it is read in: files of every format, source trees, repositories, datasets of the hub."""

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

from lclm_jax.errors import UserError

UNIT = 16 << 20  # bytes of input a worker reads at a time
DATA = {
    "jsonl": (".jsonl", ".ndjson", ".jsonl.zst", ".ndjson.zst", ".jsonl.gz", ".ndjson.gz"),
    "parquet": (".parquet",),
    "arrayrecord": (".arrayrecord", ".array_record"),
}
FORMS = (*DATA, "text", "repository")
PROJECT = (
    ".git",
    ".hg",
    "pyproject.toml",
    "setup.py",
    "package.json",
    "Cargo.toml",
    "go.mod",
    "CMakeLists.txt",
    "pom.xml",
)
SKIPPED = {"__pycache__", "node_modules", "site-packages", "build", "dist"}  # and everything hidden
HEAD = 8192  # bytes looked at; text has no zero among them
BINARY = (
    *(
        ".pyc",
        ".so",
        ".dll",
        ".exe",
        ".o",
        ".a",
        ".class",
        ".jar",
        ".whl",
        ".zip",
        ".gz",
        ".zst",
        ".bz2",
        ".xz",
        ".tar",
        ".tgz",
    ),
    *(
        ".7z",
        ".png",
        ".jpg",
        ".jpeg",
        ".gif",
        ".webp",
        ".ico",
        ".pdf",
        ".woff",
        ".woff2",
        ".ttf",
        ".mp3",
        ".mp4",
        ".npy",
        ".npz",
    ),
)


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
        raise FileNotFoundError(
            f"{pattern}: no input there; expected text, a source tree, or files that end in {known}"
        )
    return units


def _matches(pattern: str, form: str) -> list[Path]:
    """What a glob finds, without what is below a directory that it finds too, and without binary files."""
    # Path.glob takes no absolute patterns.
    paths = {Path(path) for path in glob(pattern, recursive=True)}  # noqa: PTH207
    tops = sorted(path for path in paths if not paths.intersection(path.parents))
    return [
        path
        for path in tops
        if form or not path.is_file() or _form_of(path) != "text" or _is_text(path)
    ]


def _units_of(path: Path, form: str, size: int) -> list[Unit]:
    if form == "repository":
        return [Unit(form, (str(path),))] if path.is_dir() else []
    if path.is_file():
        if not form and path.suffix.lower() == ".json" and _head(path).lstrip().startswith(b"["):
            raise UserError(
                f"{path}: expected one object a line, got one list; write it as .jsonl, or say text:{path}"
            )
        return _cut(path, form or _form_of(path), size)
    if not path.is_dir():
        return []
    wanted = {"": tuple(DATA), "text": ()}.get(form, (form,))
    data = [file for file in _walk(path) if _form_of(file) in wanted]
    if data or form in DATA:
        return [unit for file in data for unit in _cut(file, _form_of(file), size)]
    if not form and _is_project(path):
        return [Unit("repository", (str(path),))]
    projects = (
        []
        if form
        else [child for child in _visible(path) if _is_directory(child) and _is_project(child)]
    )
    rest = [
        file for file in texts(path) if not any(project in file.parents for project in projects)
    ]
    return [*(Unit("repository", (str(project),)) for project in projects), *_group(rest, size)]


def _form_of(path: Path) -> str:
    name = path.name.lower()
    return next((form for form, suffixes in DATA.items() if name.endswith(suffixes)), "text")


def _is_project(path: Path) -> bool:
    return any((path / marker).exists() for marker in PROJECT)


def _visible(directory: Path) -> list[Path]:
    """What a directory holds, in order, without what is hidden and build products."""
    return sorted(
        path
        for path in directory.iterdir()
        if not path.name.startswith(".") and path.name not in SKIPPED
    )


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()  # a link could lead in a circle, or elsewhere


def _walk(directory: Path) -> Iterator[Path]:
    """Files below a directory in the order of their paths, links to files among them: a hub's download is made of such."""
    for path in _visible(directory):
        if _is_directory(path):
            yield from _walk(path)
        elif path.is_file():
            yield path


def texts(directory: Path) -> Iterator[Path]:
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
            count, total = open_records(path).num_records(), path.stat().st_size
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
            units.append(
                Unit("jsonl", (str(path),), start, start + size, lines if whole else lines + 1)
            )
            start, lines, whole = start + size, lines + block.count(b"\n"), block.endswith(b"\n")
    return units


def _group_sizes(path: Path) -> list[int]:
    pyarrow = require("pyarrow")
    try:
        with require("pyarrow.parquet").ParquetFile(path) as file:
            return [file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)]
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from error


def open_records(path: Path | str) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path))
    if not reader.ok():
        raise ValueError("its end or its index is missing")
    return reader


def require(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"reading this input needs {module.partition('.')[0]}: pip install 'lclm_jax[data]'"
        ) from error


def _download(name: str) -> str:
    import huggingface_hub

    repository, _, revision = name.partition("@")
    patterns = [f"*{suffix}" for suffixes in DATA.values() for suffix in suffixes]
    try:
        return huggingface_hub.snapshot_download(
            repository, repo_type="dataset", revision=revision or None, allow_patterns=patterns
        )
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise FileNotFoundError(
            f"hf:{name}: the dataset could not be had from the hub: {error}"
        ) from error
