"""Rows of Parquet files: only the columns that are needed, in batches of bounded size.

Parquet decompresses a page at once, so memory also holds the largest page. Dates, times and
durations become integers, because Python cannot represent all of them and no row needs them. A cell
that cannot be read refuses its row only where its column may be needed.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lclm_jax.data.inputs.libraries import require
from lclm_jax.data.rows.field_names import KNOWN_FIELDS

MAX_BATCH_BYTES = 64 << 20  # of a batch of rows, if each of its values were the longest
MAX_BATCH_ROWS = 256
READ_BUFFER_BYTES = 1 << 20
# Raised by pyarrow for bytes that are not text, numbers too large for Python, and unknown types.
CELL_ERRORS = (ArithmeticError, LookupError, NotImplementedError, OSError, TypeError, ValueError)


@dataclass(frozen=True)
class UnreadableRow:
    """A row with a needed cell that cannot be read.

    Attributes:
        reason: "encoding" or "corrupt".
        detail: what was expected and found.
    """

    reason: str
    detail: str


def group_sizes(path: Path) -> list[int]:
    """Return the bytes of each row group. Raises ValueError for a damaged file."""
    try:
        with _open(path) as file:
            return [file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)]
    except require("pyarrow").ArrowException as error:
        raise ValueError(str(error)) from error


class ParquetRows:
    """The rows of consecutive row groups of a file.

    Args:
        path: the file.
        groups: numbers of the row groups.
        wanted: columns to read; all of them if it is None or the file has none of these.
    """

    def __init__(self, path: Path, groups: slice, wanted: Collection[str] | None):
        self.path, self.groups, self.wanted = path, groups, wanted
        self.ignored: list[str] = []  # names of unread columns, known after the first row
        self.number = 0  # position of the next row in the file

    def __iter__(self) -> Iterator[dict[str, Any] | UnreadableRow]:
        """Yield the rows. Raises ValueError, OSError or an ArrowException for a damaged file."""
        with _open(self.path) as file:
            names = file.schema_arrow.names
            columns = self._choose_columns(names)
            self.ignored = [name for name in names if name not in columns]
            needed = KNOWN_FIELDS.intersection(columns) or frozenset(columns)
            groups = range(file.num_row_groups)
            self.number = sum(
                file.metadata.row_group(i).num_rows for i in groups[: self.groups.start]
            )
            for group in groups[self.groups]:
                size = _batch_rows(file.metadata.row_group(group), columns)
                selection = None if columns == names else columns
                for batch in file.iter_batches(size, row_groups=[group], columns=selection):
                    for row in _rows_of(_times_to_integers(batch), needed):
                        yield row
                        self.number += 1

    def _choose_columns(self, names: Sequence[str]) -> Sequence[str]:
        """Return the columns to read. Raises ValueError where two have the same name."""
        wanted = [name for name in names if self.wanted is None or name in self.wanted]
        columns = wanted or names
        repeated = sorted({name for name in columns if columns.count(name) > 1})
        if repeated:
            raise ValueError(f"two columns are called {', '.join(repeated)}")
        return columns


def _open(path: Path) -> Any:
    return require("pyarrow.parquet").ParquetFile(
        path, buffer_size=READ_BUFFER_BYTES, pre_buffer=False
    )


def _batch_rows(group: Any, names: Sequence[str]) -> int:
    """Return the rows of a batch that fits in memory even if each were as large as the group.

    A dictionary's value is in the file once, however many rows refer to it, so the size of a group
    does not bound the size of its rows.
    """
    columns = [group.column(i) for i in range(group.num_columns)]
    used = [column for column in columns if column.path_in_schema.split(".")[0] in names]
    size = sum(column.total_uncompressed_size for column in used)
    return max(1, min(MAX_BATCH_ROWS, MAX_BATCH_BYTES // max(1, size)))


def _times_to_integers(batch: Any) -> Any:
    """Return the batch with dates, times and durations as integers."""
    pyarrow = require("pyarrow")
    fields = [field.with_type(_integer_type(field.type)) for field in batch.schema]
    schema = pyarrow.schema(fields)
    return batch if schema.equals(batch.schema) else batch.cast(schema)


def _integer_type(type_: Any) -> Any:
    pyarrow = require("pyarrow")
    types = pyarrow.types
    if types.is_temporal(type_):
        return pyarrow.int32() if type_.bit_width == 32 else pyarrow.int64()
    if types.is_struct(type_):
        fields = [type_.field(i) for i in range(type_.num_fields)]
        return pyarrow.struct([field.with_type(_integer_type(field.type)) for field in fields])
    if types.is_list(type_):
        value = type_.value_field
        return pyarrow.list_(value.with_type(_integer_type(value.type)))
    return type_


def _rows_of(batch: Any, needed: Collection[str]) -> Iterator[dict[str, Any] | UnreadableRow]:
    columns = {name: _cells(batch.column(name), name in needed) for name in batch.schema.names}
    for i in range(batch.num_rows):
        row = {name: cells[i] for name, cells in columns.items()}
        problems = (cell for cell in row.values() if isinstance(cell, UnreadableRow))
        yield next(problems, None) or row


def _cells(column: Any, is_needed: bool) -> Sequence[Any]:
    try:
        return column.to_pylist()
    except CELL_ERRORS:
        return [_cell(value, is_needed) for value in column]


def _cell(value: Any, is_needed: bool) -> Any:
    try:
        return value.as_py()
    except CELL_ERRORS as error:
        if not is_needed:
            return None
        if isinstance(error, UnicodeDecodeError):
            return UnreadableRow("encoding", "expected UTF-8, got a cell that is not")
        return UnreadableRow("corrupt", f"expected a cell that can be read, got {error!r:.200}")
