"""Checksums of the files in a directory, in the format of `sha256sum`.

`sha256sum -c SHA256SUMS` in the directory verifies them without this library.
"""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lclm_jax.files.atomic import UNFINISHED, write_whole

CHECKSUMS = "SHA256SUMS"
FileChecksum = tuple[Path, str]  # a file and its sha256 in hexadecimal


def hash_file(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(directory: Path):
    """Write the checksums of every file in a directory and below, after all the files."""
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


def read_checksums(directory: Path) -> list[FileChecksum]:
    """Return the files of a directory with their checksums.

    Raises ValueError for a `SHA256SUMS` that is not a list of checksums.
    """
    try:
        text = (directory / CHECKSUMS).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{CHECKSUMS} is not text") from error
    lines = [line.split("  ", 1) for line in text.splitlines()]
    if not lines or any(len(line) != 2 for line in lines):
        raise ValueError(f"{CHECKSUMS} is not a list of checksums")
    return [(directory / name, digest) for digest, name in lines]


def find_damage(directory: Path, share: int = 0, shares: int = 1) -> list[str]:
    """Return a line for every file of a directory that is missing or changed.

    A directory without checksums counts as undamaged. Of several processes, each checks the
    `share`-th of `shares` equal parts.
    """
    if not (directory / CHECKSUMS).exists():
        return []
    try:
        checksums = read_checksums(directory)
    except ValueError as error:
        return [str(error)]
    with ThreadPoolExecutor() as pool:
        problems = pool.map(describe_damage, checksums[share::shares])
        return [problem for problem in problems if problem]


def describe_damage(checksum: FileChecksum) -> str:
    """Return what is wrong with a file, or an empty text for an undamaged one."""
    path, digest = checksum
    if not path.is_file():
        return f"{path.name} is missing"
    try:
        return "" if hash_file(path) == digest else f"{path.name} is not as it was written"
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"


def check_files(checksums: Iterable[FileChecksum]) -> Iterable[tuple[Path, str]]:
    """Yield each file, in order, with what is wrong with it as `describe_damage` says it."""
    checksums = list(checksums)
    paths = (path for path, _ in checksums)
    with ThreadPoolExecutor() as pool:
        yield from zip(paths, pool.map(describe_damage, checksums), strict=True)
