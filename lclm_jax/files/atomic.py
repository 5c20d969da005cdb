"""Files that appear complete or not at all, whatever ends the process that writes them.

A file is written under another name in its directory, flushed to disk, and renamed.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = ".unfinished"  # suffix of a file that is being written
MAX_PREFIX = 40  # characters of the final name in the temporary one, within every system's limit


def write_whole(path: str | Path, content: str | bytes):
    """Write a text file in UTF-8, or a binary file, and make its directory.

    Two processes that write the same path do not disturb each other: the last rename wins.
    """
    with unfinished_file(path) as unfinished:
        data = content.encode() if isinstance(content, str) else content
        with unfinished.open("xb") as file:
            file.write(data)


@contextmanager
def unfinished_file(path: str | Path) -> Iterator[Path]:
    """Yield an unused path beside `path`; a file written there becomes `path` after the block.

    After an error the unfinished file is removed and `path` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    name = f".{path.name[:MAX_PREFIX]}.{uuid.uuid4().hex[:12]}{UNFINISHED}"
    unfinished = path.with_name(name)
    try:
        yield unfinished
        publish(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def publish(unfinished: Path, path: Path):
    """Flush a finished file to disk and give it its final name, replacing a file of that name."""
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.replace(path)
