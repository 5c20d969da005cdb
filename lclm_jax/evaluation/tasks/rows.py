"""Files of published tasks, and their rows with fields that are checked as they are read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lclm_jax.data.inputs import Rejection, find_units, read_unit
from lclm_jax.errors import ConfigError, FileError


@dataclass(frozen=True)
class Source:
    """The origin of a task's files, and their names here.

    Attributes:
        folder: in the directory of evaluation data, where they are read.
        patterns: names of the files.
        origin: address from which to download them.
    """

    folder: str
    patterns: Sequence[str]
    origin: str

    def files(self, directory: Path | None) -> list[Path]:
        """Return the files, by name. Raises ConfigError and FileError that say what to download."""
        names = " or ".join(self.patterns)
        if directory is None:
            raise ConfigError(
                f"expected a directory with {self.folder}/{names}, got none; "
                f"download the files from {self.origin} and name their directory with --data"
            )
        folder = directory / self.folder
        paths = {path for pattern in self.patterns for path in folder.glob(pattern)}
        if not paths:
            raise FileError(
                f"{folder}: expected {names}, got no such file; download it from {self.origin} "
                f"and put it into {folder}"
            )
        return sorted(paths)


@dataclass(frozen=True)
class Row:
    """A row of a file, or an object in it.

    Its methods return a field of the row and raise FileError, which names file, row and field, for
    a value of another kind.

    Attributes:
        place: the file and the number of the row, from 0.
        fields: values by name.
        path: names of the fields around this object, each followed by a dot.
    """

    place: str
    fields: Mapping[str, Any]
    path: str = ""

    def text(self, name: str) -> str:
        """Return text that is not blank."""
        value = self.fields.get(name)
        if not isinstance(value, str) or not value.strip():
            raise self.error(name, "text", value)
        return value

    def optional_text(self, name: str) -> str:
        """Return text, which is empty where the field is absent."""
        return "" if self.fields.get(name) in (None, "") else self.text(name)

    def answer(self, name: str) -> str:
        """Return text, or a number as text."""
        value = self.fields.get(name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return str(value) if is_number else self.text(name)

    def answers(self, name: str) -> list[str]:
        """Return at least one text or number, alone or in a list, as texts."""
        value = self.fields.get(name)
        if not isinstance(value, list):
            return [self.answer(name)]
        if not value:
            raise self.error(name, "at least one text", value)
        numbered = self._number(name, value)
        return [numbered.answer(item) for item in numbered.fields]

    def items(self, name: str) -> Sequence[Any]:
        """Return a list."""
        value = self.fields.get(name)
        if not isinstance(value, list):
            raise self.error(name, "a list", value)
        return value

    def row(self, name: str) -> "Row":
        """Return an object as a row."""
        value = self.fields.get(name)
        if not isinstance(value, Mapping):
            raise self.error(name, "an object", value)
        return Row(self.place, value, f"{self.path}{name}.")

    def rows(self, name: str) -> Sequence["Row"]:
        """Return a list of objects as rows."""
        numbered = self._number(name, self.items(name))
        return [numbered.row(item) for item in numbered.fields]

    def _number(self, name: str, items: Sequence[Any]) -> "Row":
        """Return the items of a list as fields called by their index."""
        return Row(self.place, {f"{name}[{i}]": item for i, item in enumerate(items)}, self.path)

    def error(self, name: str, expected: str, value: Any) -> FileError:
        """Return the error of a field with another value than expected."""
        got = "nothing" if value is None else f"{type(value).__name__} {value!r:.80}"
        return FileError(f"{self.place}: expected {expected} in {self.path}{name}, got {got}")


def read_rows(file: Path, remedy: str = "download the file again") -> Iterator[Row]:
    """Yield the rows of a file in any format of `data.inputs`: an object of JSON is one row.

    Raises FileError that names the row, and `remedy`, for one that cannot be read, also where the
    file is cut off.
    """
    for unit in find_units(str(file.absolute())):
        for row in read_unit(unit):
            place = f"{file}, row {row.number}"
            if isinstance(row, Rejection):
                raise FileError(f"{place}: {row.reason}: {row.detail}; {remedy}")
            yield Row(place, row.fields)
