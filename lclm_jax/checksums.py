"""Checksums of the files in a directory, as `sha256sum` writes them: anyone can check by `sha256sum -c SHA256SUMS` there."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lclm_jax.writing import write_whole

CHECKSUMS = "SHA256SUMS"


def hash_file(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(directory: Path):
    """Of every file in a directory and below. They appear whole, and last."""
    files = sorted(
        path for path in directory.rglob("*") if path.is_file() and path.name != CHECKSUMS
    )
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(hash_file, files))
    lines = [
        f"{digest}  {path.relative_to(directory)}\n"
        for digest, path in zip(digests, files, strict=True)
    ]
    write_whole(directory / CHECKSUMS, "".join(lines))


def damage(directory: Path, share: int = 0, shares: int = 1) -> list[str]:
    """What is wrong with the files of a directory, one line for each; none where it has no checksums.

    Of several processes each looks at a share of the files.
    """
    listed = directory / CHECKSUMS
    if not listed.exists():
        return []
    try:
        lines = [line.split("  ", 1) for line in listed.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError:
        return [f"{CHECKSUMS} is not text"]
    if not lines or any(len(line) != 2 for line in lines):
        return [f"{CHECKSUMS} is not a list of checksums"]
    with ThreadPoolExecutor() as pool:
        return [
            said
            for said in pool.map(
                lambda line: _compare(directory / line[1], line[0]), lines[share::shares]
            )
            if said
        ]


def _compare(path: Path, digest: str) -> str:
    if not path.is_file():
        return f"{path.name} is missing"
    return "" if hash_file(path) == digest else f"{path.name} is not as it was written"
