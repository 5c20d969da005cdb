"""Checksums of the files in a directory, as `sha256sum` writes them: anyone can check by `sha256sum -c SHA256SUMS` there."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lclm_jax.files.atomic import UNFINISHED, write_whole

CHECKSUMS = "SHA256SUMS"
Listed = tuple[Path, str]  # a file and the sha256 it was written with


def hash_file(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(directory: Path):
    """Lists every file in a directory and below. The list appears whole, and last."""
    files = sorted(
        path
        for path in directory.rglob("*")
        if path.is_file() and path.name != CHECKSUMS and not path.name.endswith(UNFINISHED)
    )
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(hash_file, files))
    lines = [
        f"{digest}  {path.relative_to(directory)}\n"
        for digest, path in zip(digests, files, strict=True)
    ]
    write_whole(directory / CHECKSUMS, "".join(lines))


def read_checksums(directory: Path) -> list[Listed]:
    """The listed files of a directory. Raises ValueError that says what is wrong with the list."""
    try:
        text = (directory / CHECKSUMS).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{CHECKSUMS} is not text") from error
    lines = [line.split("  ", 1) for line in text.splitlines()]
    if not lines or any(len(line) != 2 for line in lines):
        raise ValueError(f"{CHECKSUMS} is not a list of checksums")
    return [(directory / name, digest) for digest, name in lines]


def damage(directory: Path, share: int = 0, shares: int = 1) -> list[str]:
    """Lists what is wrong with the files of a directory, a line for each.

    Finds nothing where there are no checksums. Each of several processes looks at a share.
    """
    if not (directory / CHECKSUMS).exists():
        return []
    try:
        listed = read_checksums(directory)
    except ValueError as error:
        return [str(error)]
    with ThreadPoolExecutor() as pool:
        return [problem for problem in pool.map(compare, listed[share::shares]) if problem]


def compare(listed: Listed) -> str:
    """Describes what is wrong with a file; empty for a whole one."""
    path, digest = listed
    if not path.is_file():
        return f"{path.name} is missing"
    try:
        return "" if hash_file(path) == digest else f"{path.name} is not as it was written"
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"


def compare_all(listed: Iterable[Listed]) -> Iterable[tuple[Path, str]]:
    """Compares files; yields each, in order, and what is wrong with it."""
    listed = list(listed)
    with ThreadPoolExecutor() as pool:
        yield from zip((path for path, _ in listed), pool.map(compare, listed), strict=True)
