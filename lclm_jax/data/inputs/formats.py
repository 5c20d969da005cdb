"""The format of an input file: by its content, and by its suffix where that is ambiguous.

A format is called `form` here, because `format` is a function of Python.
"""

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lclm_jax.data.inputs.decompression import (
    SUFFIXES,
    encoding_of,
    is_compressed,
    open_decompressed,
    open_text,
)
from lclm_jax.errors import UserError

# Formats of rows and their suffixes, which a suffix of compression may follow.
DATA = {
    "jsonl": (".jsonl", ".ndjson", ".jsonlines"),
    "parquet": (".parquet",),
    "arrayrecord": (".arrayrecord", ".array_record"),
    "json": (".json",),
    "csv": (".csv", ".tsv"),
}
MAGIC = {"parquet": b"PAR1", "arrayrecord": b"\x83\xaf\x70\xd1\x0d\x88\x4a\x3f"}
HEAD_BYTES = 1 << 16  # of a file, or of each of its first lines, that decide the format
# Binary files whose first bytes may have no zero.
BINARY_SUFFIXES = (
    *(".pyc", ".so", ".dll", ".exe", ".o", ".a", ".class", ".jar", ".whl", ".zip", ".tar"),
    *(".tgz", ".7z", ".png", ".jpg", ".jpeg", ".gif", ".webp", ".ico", ".pdf", ".woff"),
    *(".woff2", ".ttf", ".mp3", ".mp4", ".npy", ".npz"),
)


class UnreadError(UserError):
    """A file that is not read; a preparation counts these apart from refused rows.

    Attributes:
        reason: "not text", "not a file", "unreadable", "corrupt", "link", "other format",
            "other split" or "skipped".
        detail: what was expected and found.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def suffix_form(path: Path) -> str:
    """Return the format of a file's suffix: one of DATA, or "text"."""
    name = _inner_name(path)
    return next((form for form, suffixes in DATA.items() if name.endswith(suffixes)), "text")


def find_form(path: Path) -> str:
    """Return the format of a file: one of DATA, or "text". Raises UnreadError for any other."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise UnreadError("not a file", f"expected a regular file, got {_describe_mode(mode)}")
        return _form_of_content(path)
    except (OSError, EOFError, ValueError) as error:
        raise UnreadError("unreadable", f"expected a file that can be read: {error}") from error


def _refuse_binary(path: Path):
    """Raise UnreadError for a file that is not text."""
    suffix = Path(_inner_name(path)).suffix
    if suffix in BINARY_SUFFIXES:
        raise UnreadError("not text", f"expected text, got a file named {suffix}")
    with open_decompressed(path) as file:
        head = file.read(HEAD_BYTES)
    if _has_zero(head):
        raise UnreadError("not text", f"expected text, got a zero at byte {head.index(0)}")


def _has_zero(head: bytes) -> bool:
    return encoding_of(head) is None and b"\0" in head


def _form_of_content(path: Path) -> str:
    """Return the format by the first bytes, the suffix and the first lines, in this order."""
    suffix = suffix_form(path)
    try:
        with open_decompressed(path) as file:
            head = file.read(HEAD_BYTES)
    except (OSError, EOFError):
        if suffix == "text":
            raise
        return suffix  # reading its rows will report the damage
    form = next((form for form, magic in MAGIC.items() if head.startswith(magic)), None)
    _refuse_compression(path, head, form)
    if form is not None:
        return form
    if suffix == "text":
        _refuse_binary(path)
    return suffix if suffix == "csv" or _has_zero(head) else _form_of_json(path, suffix)


def _refuse_compression(path: Path, head: bytes, form: str | None):
    """Raise UnreadError for a format that is not read compressed, and for a damaged beginning."""
    compressed = is_compressed(path)
    if compressed and form is not None:
        raise UnreadError("other format", f"expected a plain {form} file; decompress it")
    has_suffix = path.name.lower().endswith(SUFFIXES)
    if has_suffix and not compressed and _parse_json(head.partition(b"\n")[0]) is None:
        detail = f"expected a compressed file, got one that begins {head[:8]!r}"
        raise UnreadError("corrupt", detail)


def _form_of_json(path: Path, suffix: str) -> str:
    """Return the format of text that may be JSON: lines of objects, one list, or one object."""
    first, *more = [_parse_json(line) for line in _first_lines(path)] or [None]
    if suffix == "json":
        return "jsonl" if isinstance(first, Mapping) and more else "json"
    if suffix == "jsonl":
        return "json" if _is_list(path) and (first is None or not more) else "jsonl"
    rows = [isinstance(value, Mapping) for value in (first, *more)]
    # Under another suffix, one object may be a text; two lines of objects are rows.
    is_named_text = suffix == "text" and "." in _inner_name(path).lstrip(".")
    return "jsonl" if all(rows) and len(rows) > is_named_text else suffix


def _first_lines(path: Path) -> list[bytes]:
    """Return the first two lines that are not blank, cut to HEAD_BYTES."""
    lines: list[bytes] = []
    with open_text(path) as file:
        while len(lines) < 2 and (line := file.readline(HEAD_BYTES)):
            if line.strip():
                lines.append(line)
    return lines


def _is_list(path: Path) -> bool:
    """Return whether a file begins as a list of objects."""
    with open_text(path) as file:
        head = file.read(HEAD_BYTES).removeprefix(b"\xef\xbb\xbf")
    return b"".join(head.split())[:2] == b"[{"


def _parse_json(line: bytes) -> Any:
    """Return the value of a line of JSON; None for any other line."""
    try:
        return json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None


def _inner_name(path: Path) -> str:
    """Return the name in lower case, without a suffix of compression."""
    name = path.name.lower()
    compression = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")
    return name.removesuffix(compression)


def _describe_mode(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "a file of another kind")
