"""The units that the input is read in: files of every format, source trees, repositories, datasets
of the hub; and the names of what is found and not read.
"""

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
    Unread,
    find_data,
    find_texts,
    is_directory,
    is_project,
    visible,
)

__all__ = ["Unit", "find_texts", "find_units", "open_records"]

UNIT = 16 << 20  # bytes of input a worker reads at a time
FORMS = (*DATA, "text", "repository")


@dataclass(frozen=True)
class Unit:
    """What one worker reads at a time. Units depend on the input alone."""

    form: str  # one of FORMS, or "unread"
    files: tuple[str, ...]  # one file, or several small ones of text; a directory for a repository
    start: int = 0  # bytes of jsonl, row groups of Parquet, records of ArrayRecord
    stop: int | None = None  # None: to the end
    first: int = 0  # number of the first line that begins in it, for jsonl
    reasons: tuple[tuple[str, str], ...] = ()  # of "unread" files: why, and what was found


def find_units(pattern: str, size: int = UNIT) -> list[Unit]:
    """The units of a file, a glob or a directory, in the order of their paths.

    The content of a file says what it is, and its suffix where that leaves a choice; a form before
    the path, as `text:PATH`, says it for all. A directory with data files is a dataset: its data
    files are read, but for those of its validation and test splits. Any other is a tree of text,
    and one document where a project's marker (.git, pyproject.toml and the like) says that it is a
    repository, or `repository:PATH` does. `hf:owner/name@revision` is a dataset of the hub. What is
    found and not read comes last, as a unit of form "unread"; hidden files and `__pycache__` are
    left out. Raises FileNotFoundError when nothing is found, naming what was looked for.
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
        reasons = tuple((one.reason, one.detail) for one in unread)
        units.append(Unit("unread", tuple(str(one.path) for one in unread), reasons=reasons))
    if not units:
        known = ", ".join(suffix for suffixes in DATA.values() for suffix in suffixes)
        raise FileNotFoundError(
            f"{pattern}: no input there; expected text, a source tree, or files that end in {known}"
        )
    return units


def _units_of_glob(pattern: str, form: str, size: int) -> tuple[list[Unit], list[Unread]]:
    """The units of what a glob finds, without what is below a directory that it finds too."""
    # Path.glob takes no absolute patterns.
    paths = {Path(path) for path in glob(pattern, recursive=True)}  # noqa: PTH207
    tops = sorted(path for path in paths if not paths.intersection(path.parents))
    parts = Path(pattern).parts
    fixed = next((i for i, part in enumerate(parts) if has_magic(part)), len(parts))
    units: list[Unit] = []
    unread: list[Unread] = []
    for path in tops:
        # A split that the pattern itself spells is asked for.
        split = None if path.is_dir() else split_of_file(path.parts[fixed:])
        if split in (None, split_of_file(parts[fixed:])):
            more, others = _units_of(path, form, size)
            units, unread = units + more, unread + others
        else:
            unread.append(Unread.of_split(path, split))
    return units, unread


def _units_of(path: Path, form: str, size: int) -> tuple[list[Unit], list[Unread]]:
    if form == "repository":
        return ([Unit(form, (str(path),))], []) if path.is_dir() else ([], [])
    if not path.is_dir():
        try:
            found = find_form(path)
        except UnreadError as error:
            return [], [Unread(path, error.reason, error.detail)]
        return _cut(path, form or found, size), []
    if form != "text":
        data, unread = find_data(path, form)
        if data or form:
            return [unit for file, found in data for unit in _cut(file, found, size)], unread
    if not form and is_project(path):
        return [Unit("repository", (str(path),))], []
    projects = (
        [] if form else [one for one in visible(path) if is_directory(one) and is_project(one)]
    )
    texts, unread = find_texts(path, projects)
    rows = [file for file, one in texts if one == "jsonl" and not form]
    units = [Unit("repository", (str(project),)) for project in projects]
    units += [unit for file in rows for unit in _cut(file, "jsonl", size)]
    rest = [file for file, one in texts if one != "jsonl" or form]
    return [*units, *_group(rest, size)], unread


def _group(files: Sequence[Path], size: int) -> list[Unit]:
    """Units of text files, each of about `size` bytes."""
    groups: list[list[str]] = []
    room = 0
    for file in files:
        bytes_ = file.lstat().st_size
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
        if form == "jsonl":
            return [Unit(form, (name,))] if _is_whole(path) else _cut_lines(path, size)
        if form == "parquet":
            sizes = group_sizes(path)
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
    return [*units, Unit(form, (name,), start)]


def _is_whole(path: Path) -> bool:
    """Whether lines can only be read from the first on."""
    with path.open("rb") as file:
        return encoding_of(file.read(4)) is not None or is_compressed(path)


def _cut_lines(path: Path, size: int) -> list[Unit]:
    """Ranges of bytes. Their lines are counted here, in one pass: else each worker would read all
    that lies before its own.
    """
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


def open_records(path: Path | str) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path))
    if not reader.ok():
        raise ValueError("its end or its index is missing")
    return reader


def _download(name: str) -> str:
    import huggingface_hub

    repository, _, revision = name.partition("@")
    suffixes = [suffix for some in DATA.values() for suffix in some]
    patterns = [f"*{suffix}{packed}" for suffix in suffixes for packed in ("", *SUFFIXES)]
    try:
        return huggingface_hub.snapshot_download(
            repository, repo_type="dataset", revision=revision or None, allow_patterns=patterns
        )
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise FileNotFoundError(
            f"hf:{name}: the dataset could not be had from the hub: {error}"
        ) from error
