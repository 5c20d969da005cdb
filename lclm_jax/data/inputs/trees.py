"""The data files or texts below a directory, and the files that are not read."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from lclm_jax.data.inputs.formats import UnreadError, find_form, suffix_form
from lclm_jax.data.inputs.splits import split_of_file

BINARY_FORMS = ("parquet", "arrayrecord")  # recognised by their first bytes
DATASET_FORMS = ("jsonl", *BINARY_FORMS)  # one such file, with its suffix, makes a dataset
PROJECT_MARKERS = (
    *(".git", ".hg", "pyproject.toml", "setup.py", "package.json", "Cargo.toml", "go.mod"),
    *("CMakeLists.txt", "pom.xml"),
)
BUILD_DIRECTORIES = {"node_modules", "site-packages", "build", "dist"}  # listed, not read
DOCUMENTATION_SUFFIXES = (".md", ".rst", ".html")  # beside data, such files describe it
DOCUMENTATION_NAMES = ("license", "licence", "readme", "notice", "citation")


@dataclass(frozen=True)
class UnreadFile:
    """A file or directory that is not read, with the reason and detail of an `UnreadError`."""

    path: Path
    reason: str
    detail: str

    @classmethod
    def of_split(cls, path: Path, split: str | None) -> "UnreadFile":
        """Return a file that is left out because of its split."""
        return cls(
            path,
            "other split",
            f"the {split} split of a dataset is not trained on; to read it, make it an input",
        )


def find_data(directory: Path, form: str = "") -> tuple[list[tuple[Path, str]], list[UnreadFile]]:
    """Return the data files below a directory with their formats, and the unread files.

    Both are empty for a source tree. JSON lists, tables, and JSON lines under other names also
    occur in source trees; they are data only beside other data, or where all other files are
    documentation. `form` selects one format.
    """
    files: list[tuple[Path, str]] = []
    unread: list[UnreadFile] = []
    for entry in _walk(directory):
        if isinstance(entry, UnreadFile):
            unread.append(entry)
            continue
        try:
            files.append((entry, find_form(entry)))
        except UnreadError as error:
            unread.append(UnreadFile(entry, error.reason, error.detail))
    if not form and not _is_dataset(directory, files):
        return [], []
    data = []
    for file, file_form in files:
        split = split_of_file(file.relative_to(directory).parts)
        if file_form == "text" or form not in ("", file_form):
            expected = form or "data as beside it"
            detail = f"expected {expected}, got {file_form}; to read it, make it an input"
            unread.append(UnreadFile(file, "other format", detail))
        elif split is not None:
            unread.append(UnreadFile.of_split(file, split))
        else:
            data.append((file, file_form))
    return data, sorted(unread, key=lambda file: file.path)


def _is_dataset(directory: Path, files: list[tuple[Path, str]]) -> bool:
    """Return whether a directory with these files, each with its format, is a dataset."""
    if any(
        form in DATASET_FORMS and form in (suffix_form(file), *BINARY_FORMS) for file, form in files
    ):
        return True
    texts = [file for file, form in files if form == "text" and not _is_documentation(file)]
    has_rows = any(form != "text" for _, form in files)
    return has_rows and not texts and not is_project(directory)


def _is_documentation(file: Path) -> bool:
    has_suffix = file.suffix.lower() in DOCUMENTATION_SUFFIXES
    return has_suffix or file.stem.lower() in DOCUMENTATION_NAMES


def find_texts(
    directory: Path, without: Collection[Path] = ()
) -> tuple[list[tuple[Path, str]], list[UnreadFile]]:
    """Return the text files below a directory with their formats, by path, and the unread files.

    Links that lead out of the directory are not followed, and the directories `without` are left
    out.
    """
    top = directory.resolve()
    texts: list[tuple[Path, str]] = []
    unread: list[UnreadFile] = []
    for entry in _walk(directory, without):
        if isinstance(entry, UnreadFile):
            unread.append(entry)
            continue
        try:
            form = find_form(entry)
            if entry.is_symlink() and not entry.resolve().is_relative_to(top):
                target = entry.resolve()
                raise UnreadError("link", f"expected a file of the tree, got a link to {target}")
            texts.append((entry, form))
        except UnreadError as error:
            unread.append(UnreadFile(entry, error.reason, error.detail))
    return texts, unread


def is_project(path: Path) -> bool:
    """Return whether a directory has a project's marker; False where it cannot be read."""
    try:
        return any((path / marker).exists() for marker in PROJECT_MARKERS)
    except OSError:
        return False


def is_directory(path: Path) -> bool:
    """Return whether a path is a directory and no link, which could lead in a circle or away."""
    try:
        return path.is_dir() and not path.is_symlink()
    except OSError:
        return False


def visible(directory: Path) -> list[Path]:
    """Return the entries of a directory without hidden ones, caches and build directories."""
    try:
        return [path for path in _entries(directory) if path.name not in BUILD_DIRECTORIES]
    except OSError:
        return []


def _entries(directory: Path) -> list[Path]:
    return sorted(
        path
        for path in directory.iterdir()
        if not path.name.startswith(".") and path.name != "__pycache__"
    )


def _walk(directory: Path, without: Collection[Path] = ()) -> Iterator[Path | UnreadFile]:
    """Yield the files below a directory by path, and the directories that are not read.

    Links to files count as files: a download from the hub consists of them.
    """
    try:
        entries = [(path, path.is_dir()) for path in _entries(directory)]
    except OSError as error:
        yield UnreadFile(directory, "unreadable", f"expected a directory that can be read: {error}")
        return
    for path, is_dir in entries:
        if path in without:
            continue
        if not is_dir:
            yield path
        elif path.is_symlink():
            target = path.readlink()
            yield UnreadFile(path, "link", f"a linked directory is not followed, here to {target}")
        elif path.name in BUILD_DIRECTORIES:
            yield UnreadFile(path, "skipped", "a product of builds; to read it, make it an input")
        else:
            yield from _walk(path, without)
