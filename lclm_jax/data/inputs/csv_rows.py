"""CSV and TSV files as rows; the first line names the fields, as in `datasets`."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lclm_jax.data.inputs.decompression import open_text

MAX_HEADER_CHARACTERS = 1 << 16  # of the first line, in which the delimiter is looked for


class CsvError(ValueError):
    """A line that is no row of its table.

    Attributes:
        reason: a few words, as in `Rejection`.
        detail: what was expected and found.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def read_table(path: Path, max_cell_length: int) -> Iterator[dict[str, Any] | CsvError]:
    """Yield the rows of a table, and an error for each line that is not one.

    An empty cell is None. Raises ValueError for a table without a header, OSError or EOFError for a
    damaged file.
    """
    csv.field_size_limit(max_cell_length)
    delimiter = _find_delimiter(path)
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
                yield _make_row(names, cells)


def _open(path: Path) -> io.TextIOWrapper:
    # Bytes that are not UTF-8 become lone surrogates, so that only their row is refused.
    return io.TextIOWrapper(
        open_text(path), encoding="utf-8-sig", errors="surrogateescape", newline=""
    )


def _find_delimiter(path: Path) -> str:
    """Return the separator that is most frequent in the first line; a comma if there is none."""
    with _open(path) as file:
        header = file.readline(MAX_HEADER_CHARACTERS)
    return max(",\t;", key=header.count)


def _make_row(names: list[str], cells: list[str]) -> dict[str, Any] | CsvError:
    if len(cells) != len(names):
        return CsvError("csv", f"expected {len(names)} cells, got {len(cells)}")
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return CsvError("encoding", "expected UTF-8, got a row that is not")
    return {name: cell or None for name, cell in zip(names, cells, strict=True)}
