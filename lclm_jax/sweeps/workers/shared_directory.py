"""Small files in a directory that many machines share: all that a sweep needs of a file system.

NFS does what is needed here, with its default options. `os.link` fails on the server where a name
is taken, and so decides between machines. Opening a file or listing a directory asks the server
anew, so what a machine has written is what all others read from then on. Object storage can take
the place of this module: a write with the condition that no object exists, a write, a read, and a
list of a prefix.
"""

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from lclm_jax.files import DirectoryError
from lclm_jax.files.atomic import MAX_PREFIX, UNFINISHED

READS = 5  # of a file that other machines replace meanwhile


def make(path: Path):
    """Make a directory, unless it exists.

    Its parent must exist: where a mount is lost, nothing must begin anew below its mount point.
    Raises DirectoryError otherwise.
    """
    try:
        path.mkdir(exist_ok=True)
    except FileNotFoundError as error:
        raise DirectoryError(
            f"expected {path.parent} to exist, got no such directory; make or mount it"
        ) from error


def create(path: Path, text: str) -> bool:
    """Create a file with its whole text. Returns False, and changes nothing, where it exists.

    Of several machines that create the same file at the same time, one gets True. Raises OSError,
    and leaves nothing, where the text cannot be written, as on a full disk.
    """
    with _unfinished(path, text) as unfinished:
        try:
            os.link(unfinished, path)
        except FileExistsError:
            # NFS may lose the reply to a request that was fulfilled, and so repeat the request.
            return unfinished.stat().st_nlink == 2
        return True


def replace(path: Path, text: str):
    """Write a file, which then has the whole new text instead of the whole old one.

    Raises OSError, and leaves the old file, where the text cannot be written.
    """
    with _unfinished(path, text) as unfinished:
        unfinished.replace(path)


def read(path: Path) -> str | None:
    """Return the text of a file, or None where there is none."""
    reads = 0
    while True:
        try:
            return path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None
        except OSError as error:  # NFS: another machine replaced the file after it was opened
            reads += 1
            if error.errno != errno.ESTALE or reads == READS:
                raise


def names(path: Path) -> list[str]:
    """Return the names in a directory, in order, without hidden ones; none where it is missing."""
    try:
        return sorted(file.name for file in path.iterdir() if not file.name.startswith("."))
    except FileNotFoundError:
        return []


def append(path: Path) -> BinaryIO:
    """Open a file to which this machine alone appends; its `tell` is the size so far."""
    return path.open("ab")


def read_end(path: Path, start: int, most: int) -> str:
    """Return what a file has from byte `start` on, or the last `most` bytes of that."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - most))
        return file.read(most).decode(errors="replace")


@contextmanager
def _unfinished(path: Path, text: str) -> Iterator[Path]:
    """Yield a hidden file beside `path` that has the text, on disk, and remove it afterwards."""
    unfinished = path.with_name(f".{path.name[:MAX_PREFIX]}.{uuid.uuid4().hex[:12]}{UNFINISHED}")
    try:
        with unfinished.open("xb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        yield unfinished
    finally:
        unfinished.unlink(missing_ok=True)
