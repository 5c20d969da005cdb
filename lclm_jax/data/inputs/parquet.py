"""Rows of Parquet files: only columns that are needed, in batches of bounded size.

A page of a file is decompressed as one, so that the largest of them is held, too.

Times become whole numbers: nobody needs them, and Python has no dates for all of them. A cell that
cannot be read costs its row where its column may be needed, else nothing.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lclm_jax.data.inputs.libraries import require
from lclm_jax.data.rows.field_names import KNOWN_FIELDS

BATCH = 64 << 20  # bytes that a batch of rows may take when all its values are the longest
MAX_ROWS = 256  # of a batch
BUFFER = 1 << 20  # bytes of a file that are read at a time
# What pyarrow raises for a cell whose bytes are no text, whose number is too large, or whose type
# Python does not have.
UNREADABLE = (ArithmeticError, LookupError, NotImplementedError, OSError, TypeError, ValueError)


@dataclass(frozen=True)
class UnreadableRow:
    """A row with a cell that cannot be read, and why."""

    reason: str  # encoding, or corrupt
    detail: str


def group_sizes(path: Path) -> list[int]:
    """Bytes of each row group. Raises ValueError for a file that is damaged."""
    try:
        with _open(path) as file:
            return [file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)]
    except require("pyarrow").ArrowException as error:
        raise ValueError(str(error)) from error


class ParquetRows:
    """The rows of some row groups of a file.

    `wanted` names the columns to read, where the file has any of them; all are read without it.
    """

    def __init__(self, path: Path, groups: slice, wanted: Collection[str] | None):
        self.path, self.groups, self.wanted = path, groups, wanted
        self.ignored: list[str] = []  # columns that are not read, once rows are
        self.number = 0  # of the next row in the file

    def __iter__(self) -> Iterator[dict[str, Any] | UnreadableRow]:
        """Raises ValueError, OSError or an ArrowException for a file that is damaged."""
        with _open(self.path) as file:
            names = file.schema_arrow.names
            read = [name for name in names if self.wanted is None or name in self.wanted] or names
            twice = sorted({name for name in read if read.count(name) > 1})
            if twice:
                raise ValueError(f"two columns are called {', '.join(twice)}")
            self.ignored = [name for name in names if name not in read]
            needed = KNOWN_FIELDS.intersection(read) or frozenset(read)
            groups = range(file.num_row_groups)
            self.number = sum(
                file.metadata.row_group(i).num_rows for i in groups[: self.groups.start]
            )
            for group in groups[self.groups]:
                size = _rows_of_batch(file.metadata.row_group(group), read)
                columns = None if read == names else read
                for batch in file.iter_batches(size, row_groups=[group], columns=columns):
                    for row in _rows(_without_times(batch), needed):
                        yield row
                        self.number += 1


def _open(path: Path) -> Any:
    return require("pyarrow.parquet").ParquetFile(path, buffer_size=BUFFER, pre_buffer=False)


def _rows_of_batch(group: Any, names: Sequence[str]) -> int:
    """Rows of a group that fit into BATCH, were each as long as all of the group is in the file.

    A value of a dictionary is in the file once, however many rows have it.
    """
    columns = [group.column(i) for i in range(group.num_columns)]
    used = [one for one in columns if one.path_in_schema.split(".")[0] in names]
    size = sum(one.total_uncompressed_size for one in used)
    return max(1, min(MAX_ROWS, BATCH // max(1, size)))


def _without_times(batch: Any) -> Any:
    """The batch with dates, times and durations as whole numbers."""
    pyarrow = require("pyarrow")
    fields = [field.with_type(_without_time(field.type)) for field in batch.schema]
    schema = pyarrow.schema(fields)
    return batch if schema.equals(batch.schema) else batch.cast(schema)


def _without_time(type_: Any) -> Any:
    pyarrow = require("pyarrow")
    types = pyarrow.types
    if types.is_temporal(type_):
        return pyarrow.int32() if type_.bit_width == 32 else pyarrow.int64()
    if types.is_struct(type_):
        parts = [type_.field(i) for i in range(type_.num_fields)]
        return pyarrow.struct([one.with_type(_without_time(one.type)) for one in parts])
    if types.is_list(type_):
        value = type_.value_field
        return pyarrow.list_(value.with_type(_without_time(value.type)))
    return type_


def _rows(batch: Any, needed: Collection[str]) -> Iterator[dict[str, Any] | UnreadableRow]:
    columns = {name: _cells(batch.column(name), name in needed) for name in batch.schema.names}
    for i in range(batch.num_rows):
        row = {name: cells[i] for name, cells in columns.items()}
        unreadable = next((one for one in row.values() if isinstance(one, UnreadableRow)), None)
        yield unreadable or row


def _cells(column: Any, is_needed: bool) -> Sequence[Any]:
    try:
        return column.to_pylist()
    except UNREADABLE:
        return [_cell(value, is_needed) for value in column]


def _cell(value: Any, is_needed: bool) -> Any:
    try:
        return value.as_py()
    except UNREADABLE as error:
        if not is_needed:
            return None
        if isinstance(error, UnicodeDecodeError):
            return UnreadableRow("encoding", "expected UTF-8, got a cell that is not")
        return UnreadableRow("corrupt", f"expected a cell that can be read, got {error!r:.200}")
