"""JSON as rows: lines of objects, and files with a list, an object, or several values."""

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lclm_jax.data.inputs.decompression import open_text

MIN_READ_CHARACTERS = 1 << 20
# A pattern that matches white space, or nothing; typeshed leaves it out.
SPACE = json.decoder.WHITESPACE  # pyright: ignore[reportAttributeAccessIssue]
RECORD_SEPARATOR = "\x1e"  # RFC 7464 begins each value with one
EXCERPT_LENGTH = 40  # characters or bytes of the input in an error


class JsonError(ValueError):
    """JSON that cannot be read further.

    Attributes:
        reason: a few words, as in `Rejection`.
        detail: what was expected and found.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class AmbiguousValue:
    """The value of a field that an object has twice with different values."""

    def __repr__(self) -> str:
        return "two different values"


def _make_object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        ambiguous = {name for name, value in pairs if fields[name] != value}
        fields |= {name: AmbiguousValue() for name in ambiguous}
    return fields


_decoder = json.JSONDecoder(object_pairs_hook=_make_object)


def parse_line(line: bytes) -> Any:
    """Return the value of a line. Raises JsonError with reason "encoding" or "json"."""
    try:
        # In a file joined from several, any line may begin with a byte order mark.
        return _decoder.decode(line.decode("utf-8-sig").lstrip(RECORD_SEPARATOR))
    except UnicodeDecodeError as error:
        detail = f"expected UTF-8, got byte {line[error.start]:#x} at {error.start} of the line"
        raise JsonError("encoding", detail) from error
    except (ValueError, RecursionError) as error:  # too many digits raise a plain ValueError
        excerpt = line[:EXCERPT_LENGTH]
        raise JsonError("json", f"expected a JSON object, got {excerpt!r}: {error}") from error


def read_values(path: Path, max_length: int) -> Iterator[Any]:
    """Yield the items of the list in a file, or its values one after another.

    The file is read in parts. Raises JsonError where the text is not JSON or a value has more than
    `max_length` characters, ValueError for text that is not UTF-8.
    """
    with open_text(path) as binary, io.TextIOWrapper(binary, encoding="utf-8-sig") as file:
        yield from _Reader(file, max_length).values()


class _Reader:
    """Parser of a file that keeps only the text of the current value in memory."""

    def __init__(self, file: io.TextIOWrapper, max_length: int):
        self.file, self.max_length = file, max_length
        self.text, self.position, self.at_end = "", 0, False
        self.is_list: bool | None = None  # unknown until the first character

    def values(self) -> Iterator[Any]:
        while True:
            self._skip_space()
            if self.position < len(self.text) and self.is_list is None:
                self.is_list = self.text[self.position] == "["
                self.position += self.is_list
                self._skip_space()

            if self.position < len(self.text):
                if self.is_list and self.text[self.position] == "]":
                    self._check_nothing_follows()
                    return
                start = self.position
                value = self._next_value()
                if self.position > start:
                    yield value
                    continue
            elif self.at_end:
                if self.is_list:
                    raise JsonError("json", "expected a whole list, got one that breaks off")
                return
            self._read_more()

    def _next_value(self) -> Any:
        """Return the next value and move behind it; do not move where it needs more text."""
        text = self.text
        try:
            value, end = _decoder.raw_decode(text, self.position)
        except (ValueError, RecursionError) as error:
            if not self.at_end:
                return None
            excerpt = text[self.position : self.position + EXCERPT_LENGTH]
            raise JsonError("json", f"expected JSON, got {excerpt!r}: {error}") from error

        end = _end_of_space(text, end)
        if end == len(text):
            # A number may go on in the text that has not been read yet.
            if self.at_end:
                self.position = end
            return value
        if self.is_list and text[end] not in ",]":
            excerpt = text[end : end + EXCERPT_LENGTH]
            raise JsonError("json", f"expected a comma in the list, got {excerpt!r}")
        self.position = end + (self.is_list is True and text[end] == ",")
        return value

    def _skip_space(self):
        self.position = _end_of_space(self.text, self.position)

    def _check_nothing_follows(self):
        rest = self.text[self.position + 1 :]
        if rest.strip() or self.file.read(MIN_READ_CHARACTERS).strip():
            raise JsonError("json", "expected one list, got more after its end")

    def _read_more(self):
        """Drop the text before the position and read as much again as there is behind it."""
        waiting = len(self.text) - self.position
        if waiting > self.max_length:
            raise JsonError(
                "too long",
                f"expected values of at most {self.max_length} characters, got a longer one: "
                "write the file as one object a line (.jsonl)",
            )
        # Doubling the text keeps the work linear although a long value is parsed again each time.
        more = self.file.read(max(MIN_READ_CHARACTERS, waiting))
        self.text, self.position = self.text[self.position :] + more, 0
        self.at_end = not more


def _end_of_space(text: str, position: int) -> int:
    match = SPACE.match(text, position)
    return match.end() if match else position
