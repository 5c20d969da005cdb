"""What lies in a directory: data files, or texts, and the names of what is not read."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from lclm_jax.data.inputs.formats import UnreadError, find_form, suffix_form
from lclm_jax.data.inputs.splits import split_of_file

COLUMNS = ("parquet", "arrayrecord")  # forms that their first bytes make known
ROWS = ("jsonl", *COLUMNS)  # forms of data alone, where names say so too
PROJECT = (
    *(".git", ".hg", "pyproject.toml", "setup.py", "package.json", "Cargo.toml", "go.mod"),
    *("CMakeLists.txt", "pom.xml"),
)
BUILD = {"node_modules", "site-packages", "build", "dist"}  # products of builds: named, not read
PAGES = (".md", ".rst", ".html")  # beside data, these describe it
LICENSES = ("license", "licence", "readme", "notice", "citation")


@dataclass(frozen=True)
class Unread:
    """A file or directory that is found and not read: a reason of `UnreadError`, and a detail."""

    path: Path
    reason: str
    detail: str

    @classmethod
    def of_split(cls, path: Path, split: str | None) -> "Unread":
        return cls(
            path,
            "other split",
            f"the {split} split of a dataset is not trained on; to read it, make it an input",
        )


def find_data(directory: Path, form: str = "") -> tuple[list[tuple[Path, str]], list[Unread]]:
    """The data files below a directory with their forms, and what else there is; no data files
    where it is a source tree.

    Lists of JSON, tables, and lines of JSON under other names are data beside other data or among
    pages alone: source trees have some, too. `form` takes the files of one form alone.
    """
    files: list[tuple[Path, str]] = []
    unread: list[Unread] = []
    for one in _walk(directory):
        if isinstance(one, Unread):
            unread.append(one)
            continue
        try:
            files.append((one, find_form(one)))
        except UnreadError as error:
            unread.append(Unread(one, error.reason, error.detail))
    if not form and not _is_dataset(directory, files):
        return [], []
    data = []
    for file, found in files:
        split = split_of_file(file.relative_to(directory).parts)
        if found == "text" or form not in ("", found):
            what = (
                f"expected {form or 'data as beside it'}, got {found}; to read it, make it an input"
            )
            unread.append(Unread(file, "other format", what))
        elif split is not None:
            unread.append(Unread.of_split(file, split))
        else:
            data.append((file, found))
    return data, sorted(unread, key=lambda one: one.path)


def _is_dataset(directory: Path, files: list[tuple[Path, str]]) -> bool:
    if any(form in ROWS and form in (suffix_form(file), *COLUMNS) for file, form in files):
        return True
    others = [file for file, form in files if form == "text" and not _is_page(file)]
    has_rows = any(form != "text" for _, form in files)
    return has_rows and not others and not is_project(directory)


def _is_page(file: Path) -> bool:
    return file.suffix.lower() in PAGES or file.stem.lower() in LICENSES


def find_texts(
    directory: Path, without: Collection[Path] = ()
) -> tuple[list[tuple[Path, str]], list[Unread]]:
    """The text files below a directory with their forms, in the order of their paths, and what
    else there is.

    Links that lead out of it are not followed; nothing below the directories `without` is listed.
    """
    top = directory.resolve()
    texts: list[tuple[Path, str]] = []
    unread: list[Unread] = []
    for one in _walk(directory, without):
        if isinstance(one, Unread):
            unread.append(one)
            continue
        try:
            form = find_form(one)
            if one.is_symlink() and not one.resolve().is_relative_to(top):
                target = one.resolve()
                raise UnreadError("link", f"expected a file of the tree, got a link to {target}")
            texts.append((one, form))
        except UnreadError as error:
            unread.append(Unread(one, error.reason, error.detail))
    return texts, unread


def is_project(path: Path) -> bool:
    """Whether a directory holds a project; not where it cannot be told."""
    try:
        return any((path / marker).exists() for marker in PROJECT)
    except OSError:
        return False


def is_directory(path: Path) -> bool:
    """Whether a path is a directory itself: a link could lead in a circle, or elsewhere."""
    try:
        return path.is_dir() and not path.is_symlink()
    except OSError:
        return False


def visible(directory: Path) -> list[Path]:
    """What a directory holds, in order, without what is hidden, caches and products of builds."""
    try:
        return [path for path in _entries(directory) if path.name not in BUILD]
    except OSError:
        return []


def _entries(directory: Path) -> list[Path]:
    return sorted(
        path
        for path in directory.iterdir()
        if not path.name.startswith(".") and path.name != "__pycache__"
    )


def _walk(directory: Path, without: Collection[Path] = ()) -> Iterator[Path | Unread]:
    """Files below a directory in the order of their paths, links to files among them: a hub's
    download is made of such.
    """
    try:
        entries = [(path, path.is_dir()) for path in _entries(directory)]
    except OSError as error:
        yield Unread(directory, "unreadable", f"expected a directory that can be read: {error}")
        return
    for path, is_dir in entries:
        if path in without:
            continue
        if not is_dir:
            yield path
        elif path.is_symlink():
            target = path.readlink()
            yield Unread(path, "link", f"a linked directory is not followed, here to {target}")
        elif path.name in BUILD:
            yield Unread(path, "skipped", "a product of builds; to read it, make it an input")
        else:
            yield from _walk(path, without)
