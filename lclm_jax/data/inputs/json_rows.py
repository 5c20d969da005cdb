"""JSON as rows: lines of objects, and files of one list, one object, or one after another."""

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lclm_jax.data.inputs.decompression import open_text

PIECE = 1 << 20  # characters read at a time, at least
SPACE = json.decoder.WHITESPACE  # matches white space, or nothing


class JsonError(ValueError):
    """JSON that cannot be read further: a reason of few words, and what was expected and found."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class TwoValues:
    """Stands for the value of a field that an object has twice with different values."""

    def __repr__(self) -> str:
        return "two different values"


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = {name for name, value in pairs if fields[name] != value}
        fields |= {name: TwoValues() for name in twice}
    return fields


_decoder = json.JSONDecoder(object_pairs_hook=_unique)


def parse_line(line: bytes) -> Any:
    """The value of a line. Raises JsonError with reason "encoding" or "json"."""
    try:
        # A mark may begin any line of files joined; RFC 7464 begins each with a separator.
        return _decoder.decode(line.decode("utf-8-sig").lstrip("\x1e"))
    except UnicodeDecodeError as error:
        detail = f"expected UTF-8, got byte {line[error.start]:#x} at {error.start} of the line"
        raise JsonError("encoding", detail) from error
    except (ValueError, RecursionError) as error:  # too many digits are a plain ValueError
        raise JsonError("json", f"expected a JSON object, got {line[:40]!r}: {error}") from error


def read_values(path: Path, longest: int) -> Iterator[Any]:
    """The values of the list in a file, or its values one after another, read in pieces.

    Raises JsonError where the text is not JSON or a value has more than `longest` characters,
    ValueError for text that is not UTF-8.
    """
    text, at, is_list, more = "", 0, None, True
    with open_text(path) as binary, io.TextIOWrapper(binary, encoding="utf-8-sig") as file:
        while True:
            at = _skip_space(text, at)
            found = None
            if at < len(text) and is_list is None:
                is_list = text[at] == "["
                at = _skip_space(text, at + is_list)
            if at < len(text) and is_list and text[at] == "]":
                if text[at + 1 :].strip() or file.read(PIECE).strip():
                    raise JsonError("json", "expected one list, got more after its end")
                return
            if at < len(text):
                found = _next(text, at, bool(is_list), more)
            elif not more:
                if is_list:
                    raise JsonError("json", "expected a whole list, got one that breaks off")
                return
            if found is not None:
                value, at = found
                yield value
                continue
            if len(text) - at > longest:
                raise JsonError(
                    "too long",
                    f"expected values of at most {longest} characters, got a longer one: write "
                    "the file as one object a line (.jsonl)",
                )
            piece = file.read(max(PIECE, len(text) - at))
            text, at, more = text[at:] + piece, 0, bool(piece)


def _next(text: str, at: int, is_list: bool, more: bool) -> tuple[Any, int] | None:
    """The value at a place and where the next begins; None where that takes more text."""
    try:
        value, end = _decoder.raw_decode(text, at)
    except (ValueError, RecursionError) as error:
        if more:
            return None
        raise JsonError("json", f"expected JSON, got {text[at : at + 40]!r}: {error}") from error
    end = _skip_space(text, end)
    if end == len(text):
        return None if more else (value, end)
    if is_list and text[end] not in ",]":
        raise JsonError("json", f"expected a comma in the list, got {text[end : end + 40]!r}")
    return value, end + (is_list and text[end] == ",")


def _skip_space(text: str, at: int) -> int:
    match = SPACE.match(text, at)
    return match.end() if match else at
