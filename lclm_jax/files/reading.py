"""Small text files: read as UTF-8 or JSON, with errors that name the file."""

import json
import sys
from pathlib import Path
from typing import Any

from lclm_jax.errors import FileError


def read_text(path: str | Path) -> str:
    """Return a file's text without byte order mark. Raises FileError unless it is UTF-8."""
    return decode(Path(path).read_bytes(), str(path))


def read_text_or_stdin(path: Path) -> str:
    """Return the text of a file, or of standard input where the path is `-`.

    Raises FileNotFoundError for a path that is no file, FileError unless the text is UTF-8.
    """
    if path == Path("-"):
        return decode(sys.stdin.buffer.read(), "standard input")
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; expected a text file, or - for standard input"
        )
    return read_text(path)


def decode(data: bytes, name: str) -> str:
    """Decode UTF-8, with an optional byte order mark. Raises FileError that names the source."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(
            f"{name} is not UTF-8 text: byte {data[error.start]:#04x} at {error.start}; "
            "convert it, as by iconv -f LATIN1 -t UTF-8"
        ) from error


def read_json(path: str | Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises FileError for anything else."""
    try:
        values = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{path} is not JSON: {error}; copy or make the file again") from error
    if not isinstance(values, dict):
        raise FileError(f"{path}: expected a JSON object, got {type(values).__name__}")
    return values
