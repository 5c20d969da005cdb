"""The form of an input file, by its content; where content leaves a choice, the suffix decides."""

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

DATA = {  # forms of rows and the suffixes that stand for them, with or without one of SUFFIXES
    "jsonl": (".jsonl", ".ndjson", ".jsonlines"),
    "parquet": (".parquet",),
    "arrayrecord": (".arrayrecord", ".array_record"),
    "json": (".json",),
    "csv": (".csv", ".tsv"),
}
MAGIC = {"parquet": b"PAR1", "arrayrecord": b"\x83\xaf\x70\xd1\x0d\x88\x4a\x3f"}
HEAD = 1 << 16  # bytes of a file, or of its first lines, that are looked at
# Files that are no text although no zero may show in their first bytes.
BINARY = (
    *(".pyc", ".so", ".dll", ".exe", ".o", ".a", ".class", ".jar", ".whl", ".zip", ".tar"),
    *(".tgz", ".7z", ".png", ".jpg", ".jpeg", ".gif", ".webp", ".ico", ".pdf", ".woff"),
    *(".woff2", ".ttf", ".mp3", ".mp4", ".npy", ".npz"),
)


class UnreadError(UserError):
    """A file that is found and not read: a reason of few words, and what was expected and found.

    Reasons are "not text", "not a file", "unreadable", "corrupt", "link", "other format",
    "other split", "skipped"; a preparation counts them apart from refused rows.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def suffix_form(path: Path) -> str:
    """The form that a file's name stands for, "text" where it is none of rows."""
    name = _inner_name(path)
    return next((form for form, suffixes in DATA.items() if name.endswith(suffixes)), "text")


def find_form(path: Path) -> str:
    """The form of a file: one of DATA, or "text". Raises UnreadError for one that has none."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise UnreadError("not a file", f"expected a regular file, got {_kind(mode)}")
        return _form_of_content(path)
    except (OSError, EOFError, ValueError) as error:
        raise UnreadError("unreadable", f"expected a file that can be read: {error}") from error


def _refuse_binary(path: Path):
    suffix = Path(_inner_name(path)).suffix
    if suffix in BINARY:
        raise UnreadError("not text", f"expected text, got a file named {suffix}")
    with open_decompressed(path) as file:
        head = file.read(HEAD)
    if _has_zero(head):
        raise UnreadError("not text", f"expected text, got a zero at byte {head.index(0)}")


def _has_zero(head: bytes) -> bool:
    return encoding_of(head) is None and b"\0" in head


def _form_of_content(path: Path) -> str:
    suffix = suffix_form(path)
    try:
        with open_decompressed(path) as file:
            head = file.read(HEAD)
    except (OSError, EOFError):
        if suffix == "text":
            raise
        return suffix  # reading it says where it is damaged
    form = next((form for form, magic in MAGIC.items() if head.startswith(magic)), None)
    _refuse_compression(path, head, form)
    if form is not None:
        return form
    if suffix == "text":
        _refuse_binary(path)
    return suffix if suffix == "csv" or _has_zero(head) else _form_of_json(path, suffix)


def _refuse_compression(path: Path, head: bytes, form: str | None):
    """Raises UnreadError for a form that cannot be read compressed, and for a damaged beginning."""
    compressed = is_compressed(path)
    if compressed and form is not None:
        raise UnreadError("other format", f"expected a plain {form} file; decompress it")
    is_named_so = path.name.lower().endswith(SUFFIXES)
    if is_named_so and not compressed and _parse(head.partition(b"\n")[0]) is None:
        detail = f"expected a compressed file, got one that begins {head[:8]!r}"
        raise UnreadError("corrupt", detail)


def _form_of_json(path: Path, suffix: str) -> str:
    """The form of text that may be JSON: lines of objects, one list, or one object."""
    first, *more = [_parse(line) for line in _first_lines(path)] or [None]
    if suffix == "json":
        return "jsonl" if isinstance(first, Mapping) and more else "json"
    if suffix == "jsonl":
        return "json" if _is_list(path) and (first is None or not more) else "jsonl"
    rows = [isinstance(value, Mapping) for value in (first, *more)]
    has_suffix = suffix == "text" and "." in _inner_name(path).lstrip(".")
    return "jsonl" if all(rows) and len(rows) > has_suffix else suffix


def _first_lines(path: Path) -> list[bytes]:
    """The first two lines with anything in them, cut where they are longer than HEAD."""
    lines: list[bytes] = []
    with open_text(path) as file:
        while len(lines) < 2 and (line := file.readline(HEAD)):
            if line.strip():
                lines.append(line)
    return lines


def _is_list(path: Path) -> bool:
    """Whether a file begins as a list of objects does."""
    with open_text(path) as file:
        head = file.read(HEAD).removeprefix(b"\xef\xbb\xbf")
    return b"".join(head.split())[:2] == b"[{"


def _parse(line: bytes) -> Any:
    """The value of a line of JSON; None for any other."""
    try:
        return json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None


def _inner_name(path: Path) -> str:
    """The name in lower case, without a suffix of compression."""
    name = path.name.lower()
    return next((name.removesuffix(one) for one in SUFFIXES if name.endswith(one)), name)


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")
