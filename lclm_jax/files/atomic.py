"""Small files that appear whole or not at all, whatever ends the process that writes them."""

import os
import uuid
from pathlib import Path

UNFINISHED = ".unfinished"  # the end of the name of a file that is being written


def write_whole(path: str | Path, text: str):
    """Writes a text file under a name of its own, to disk, and renames it to `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex[:12]}{UNFINISHED}")
    try:
        with unfinished.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
