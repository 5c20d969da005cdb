"""Tables in text, CSV and TSV, as rows: the first line names the fields, as in `datasets`."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lclm_jax.data.inputs.decompression import open_text


class CsvError(ValueError):
    """A line of a table that cannot be a row: a reason of few words, and what was found."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def read_table(path: Path, longest: int) -> Iterator[dict[str, Any] | CsvError]:
    """The rows of a table, and an error for each that cannot be read.

    An empty cell is an absent value. Raises ValueError for a table without a header.
    """
    csv.field_size_limit(longest)
    delimiter = _delimiter(path)
    with _open(path) as file:
        lines = csv.reader(file, delimiter=delimiter, strict=True)
        names = next(lines, [])
        if not names or len(set(names)) < len(names):
            raise ValueError(f"expected a first line of different names, got {names!r:.200}")
        while True:
            try:
                cells = next(lines)
            except StopIteration:
                return
            except csv.Error as error:
                yield CsvError("csv", f"expected a row of a table: {error}")
                continue
            if cells:
                yield _row(names, cells)


def _open(path: Path) -> io.TextIOWrapper:
    # Bytes that are no UTF-8 become half surrogates, so that they cost their row alone.
    return io.TextIOWrapper(
        open_text(path), encoding="utf-8-sig", errors="surrogateescape", newline=""
    )


def _delimiter(path: Path) -> str:
    """The separator that the first line has most of; a comma where it has none."""
    with _open(path) as file:
        header = file.readline(1 << 16)
    return max(",\t;", key=header.count)


def _row(names: list[str], cells: list[str]) -> dict[str, Any] | CsvError:
    if len(cells) != len(names):
        return CsvError("csv", f"expected {len(names)} cells, got {len(cells)}")
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return CsvError("encoding", "expected UTF-8, got a row that is not")
    return {name: cell or None for name, cell in zip(names, cells, strict=True)}
