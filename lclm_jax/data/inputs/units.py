"""The units in which input is read: parts of files, groups of texts, and repositories."""

from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from lclm_jax.data.inputs.decompression import SUFFIXES, encoding_of, is_compressed
from lclm_jax.data.inputs.formats import DATA, UnreadError, find_form
from lclm_jax.data.inputs.parquet import group_sizes
from lclm_jax.data.inputs.splits import split_of_file
from lclm_jax.data.inputs.trees import (
    UnreadFile,
    find_data,
    find_texts,
    is_directory,
    is_project,
    visible,
)

__all__ = ["Unit", "find_texts", "find_units", "open_records"]

UNIT_BYTES = 16 << 20  # of input that a worker reads at a time
FORMS = (*DATA, "text", "repository")


@dataclass(frozen=True)
class Unit:
    """The input that one worker reads at a time. Units depend only on the input.

    Attributes:
        form: one of FORMS, or "unread".
        files: one file, several small text files, or the directory of a repository.
        start: where the unit begins: bytes of JSON lines, row groups of Parquet, records of
            ArrayRecord.
        stop: where it ends, None for the end of the file.
        first: for JSON lines, the number of the first line that begins in the unit.
        reasons: for "unread", the reason and detail of each file.
    """

    form: str
    files: tuple[str, ...]
    start: int = 0
    stop: int | None = None
    first: int = 0
    reasons: tuple[tuple[str, str], ...] = ()


def find_units(pattern: str, size: int = UNIT_BYTES) -> list[Unit]:
    """Return the units of a file, a glob or a directory, by path, each of about `size` bytes.

    The content of a file decides its format, and its suffix where that is ambiguous; a prefix, as
    in `text:PATH`, overrides both. A directory with data files is a dataset, of which all but the
    validation and test splits are read. Any other directory is a tree of texts, or one document if
    it has a project's marker (such as .git or pyproject.toml) or the prefix `repository:`.
    `hf:owner/name@revision` is a dataset of the hub. Files that are not read come last, as a unit
    of form "unread"; hidden files and `__pycache__` are left out. Raises FileNotFoundError when
    nothing is found.
    """
    form, colon, place = pattern.partition(":")
    if colon and form == "hf":
        form, place = "", _download(place)
    elif not colon or form not in FORMS:
        form, place = "", pattern
    if place and Path(place).exists():
        units, unread = _units_of(Path(place), form, size)
    else:
        units, unread = _units_of_glob(place, form, size)
    if unread:
        reasons = tuple((file.reason, file.detail) for file in unread)
        units.append(Unit("unread", tuple(str(file.path) for file in unread), reasons=reasons))
    if not units:
        known = ", ".join(suffix for suffixes in DATA.values() for suffix in suffixes)
        raise FileNotFoundError(
            f"{pattern}: no input there; expected text, a source tree, or files that end in {known}"
        )
    return units


def _units_of_glob(pattern: str, form: str, size: int) -> tuple[list[Unit], list[UnreadFile]]:
    """Return the units of what a glob finds; directories include what is found below them."""
    # Path.glob rejects absolute patterns.
    paths = {Path(path) for path in glob(pattern, recursive=True)}  # noqa: PTH207
    tops = sorted(path for path in paths if not paths.intersection(path.parents))
    parts = Path(pattern).parts
    fixed = next((i for i, part in enumerate(parts) if has_magic(part)), len(parts))
    asked_split = split_of_file(parts[fixed:])  # a split that the pattern names is read
    units: list[Unit] = []
    unread: list[UnreadFile] = []
    for path in tops:
        split = None if path.is_dir() else split_of_file(path.parts[fixed:])
        if split in (None, asked_split):
            path_units, path_unread = _units_of(path, form, size)
            units += path_units
            unread += path_unread
        else:
            unread.append(UnreadFile.of_split(path, split))
    return units, unread


def _units_of(path: Path, form: str, size: int) -> tuple[list[Unit], list[UnreadFile]]:
    """Return the units of a file or directory, and its unread files."""
    if form == "repository":
        return ([Unit(form, (str(path),))], []) if path.is_dir() else ([], [])
    if not path.is_dir():
        try:
            file_form = find_form(path)
        except UnreadError as error:
            return [], [UnreadFile(path, error.reason, error.detail)]
        return _split(path, form or file_form, size), []
    if form != "text":
        data, unread = find_data(path, form)
        if data or form:
            return [unit for file, f in data for unit in _split(file, f, size)], unread
    if not form and is_project(path):
        return [Unit("repository", (str(path),))], []
    return _units_of_tree(path, form, size)


def _units_of_tree(path: Path, form: str, size: int) -> tuple[list[Unit], list[UnreadFile]]:
    """Return the units of a tree of texts: its repositories, JSON lines, and all other texts."""
    projects = []
    if not form:
        projects = [entry for entry in visible(path) if is_directory(entry) and is_project(entry)]
    files, unread = find_texts(path, projects)
    rows = [file for file, file_form in files if file_form == "jsonl" and not form]
    texts = [file for file, file_form in files if file_form != "jsonl" or form]
    units = [Unit("repository", (str(project),)) for project in projects]
    units += [unit for file in rows for unit in _split(file, "jsonl", size)]
    return [*units, *_group(texts, size)], unread


def _group(files: Sequence[Path], size: int) -> list[Unit]:
    """Return units of several text files, each of about `size` bytes."""
    groups: list[list[str]] = []
    room = 0
    for file in files:
        file_size = file.lstat().st_size
        if not groups or file_size > room:
            groups.append([])
            room = size
        groups[-1].append(str(file))
        room -= file_size
    return [Unit("text", tuple(group)) for group in groups]


def _split(path: Path, form: str, size: int) -> list[Unit]:
    """Return the units of one file; a damaged file is one unit, and reading it reports why."""
    name = str(path)
    try:
        if form == "jsonl":
            return [Unit(form, (name,))] if _is_sequential(path) else _split_lines(path, size)
        if form == "parquet":
            sizes = group_sizes(path)
        elif form == "arrayrecord":
            count, total = open_records(path).num_records(), path.stat().st_size
            sizes = [total // max(1, count)] * count
        else:
            return [Unit(form, (name,))]
    except (OSError, ValueError, RuntimeError):
        return [Unit(form, (name,))]
    units, start, unit_size = [], 0, 0
    for i, part_size in enumerate(sizes):
        if unit_size and unit_size + part_size > size:
            units.append(Unit(form, (name,), start, i))
            start, unit_size = i, 0
        unit_size += part_size
    return [*units, Unit(form, (name,), start)]


def _is_sequential(path: Path) -> bool:
    """Return whether lines can only be read from the first on."""
    with path.open("rb") as file:
        return encoding_of(file.read(4)) is not None or is_compressed(path)


def _split_lines(path: Path, size: int) -> list[Unit]:
    """Return ranges of bytes, each with the number of its first line.

    One pass counts the lines here; otherwise each worker would read everything before its own.
    """
    if path.stat().st_size <= size:
        return [Unit("jsonl", (str(path),))]
    units, start, lines, ends_line = [], 0, 0, True
    with path.open("rb") as file:
        while block := file.read(size):
            first = lines if ends_line else lines + 1
            units.append(Unit("jsonl", (str(path),), start, start + size, first))
            start += size
            lines += block.count(b"\n")
            ends_line = block.endswith(b"\n")
    return units


def open_records(path: Path | str) -> Any:
    """Open an ArrayRecord file. Raises ValueError for a damaged one."""
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path))
    if not reader.ok():
        raise ValueError("its end or its index is missing")
    return reader


def _download(name: str) -> str:
    """Download the data files of a dataset, `owner/name@revision`. Returns their directory."""
    import huggingface_hub

    repository, _, revision = name.partition("@")
    suffixes = [suffix for suffixes in DATA.values() for suffix in suffixes]
    patterns = [f"*{suffix}{compression}" for suffix in suffixes for compression in ("", *SUFFIXES)]
    try:
        return huggingface_hub.snapshot_download(
            repository, repo_type="dataset", revision=revision or None, allow_patterns=patterns
        )
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise FileNotFoundError(
            f"hf:{name}: the dataset could not be downloaded from the hub: {error}"
        ) from error
