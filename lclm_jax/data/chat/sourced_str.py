"""Strings that know the source of each of their characters, through any template code.

A `SourcedStr` carries runs: a number of characters and their source, None for the template's own
text. Slices, sums, splits and stripped copies keep the runs. `call_with_sources` finds the runs
again in the result of any other function.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from types import GeneratorType
from typing import Any

from jinja2 import TemplateError

Run = tuple[int, Any]  # number of characters, source
# Errors that a function of a template raises for values it does not support.
TEMPLATE_ERRORS = (
    *(TemplateError, ArithmeticError, AssertionError, AttributeError, LookupError, NameError),
    *(RuntimeError, TypeError, ValueError),
)
_PLACEHOLDER = "\ue000{}\ue001"  # stands for an argument of a function
_PLACEHOLDERS = re.compile("\ue000([0-9]+)\ue001")


class SourcedStr(str):
    """A string with the source of each of its characters; it compares and hashes as a string.

    >>> list(split_by_source("Hi, " + SourcedStr("Ben", "name").upper() + "!"))
    [('Hi, ', None), ('BEN', 'name'), ('!', None)]
    """

    _runs: tuple[Run, ...]

    def __new__(cls, text: str, source: Any = None, runs: Iterable[Run] | None = None):
        new = super().__new__(cls, text)
        new._runs = ((len(text), source),) if runs is None else merge_runs(runs)
        return new

    def __str__(self) -> "SourcedStr":
        return self  # so that str(x) keeps the runs

    def __iter__(self) -> Iterator["SourcedStr"]:
        for text, source in split_by_source(self):
            for character in text:
                yield SourcedStr(character, source)

    def __getitem__(self, key: Any) -> "SourcedStr":
        text = str.__getitem__(self, key)
        if not isinstance(key, slice):
            key = slice(key, key + 1 or None)
        start, stop, step = key.indices(len(self))
        if step == 1:
            return SourcedStr(text, runs=_cut(self._runs, start, stop))
        sources = [source for length, source in self._runs for _ in range(length)]
        return SourcedStr(text, runs=((1, source) for source in sources[key]))

    def __add__(self, other: Any) -> "SourcedStr":
        return join([self, other]) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: Any) -> "SourcedStr":
        return join([other, self]) if isinstance(other, str) else NotImplemented

    def __mul__(self, count: Any) -> "SourcedStr":
        return SourcedStr(str.__mul__(self, count), runs=self._runs * max(count, 0))

    def __rmul__(self, count: Any) -> "SourcedStr":
        return self * count

    def lstrip(self, characters: str | None = None, /) -> "SourcedStr":
        return self[len(self) - len(str.lstrip(self, characters)) :]

    def rstrip(self, characters: str | None = None, /) -> "SourcedStr":
        return self[: len(str.rstrip(self, characters))]

    def strip(self, characters: str | None = None, /) -> "SourcedStr":
        return self.lstrip(characters).rstrip(characters)

    def removeprefix(self, prefix: str, /) -> "SourcedStr":
        return self[len(self) - len(str.removeprefix(self, prefix)) :]

    def removesuffix(self, suffix: str, /) -> "SourcedStr":
        return self[: len(str.removesuffix(self, suffix))]

    def split(self, sep: str | None = None, maxsplit: int = -1) -> list["SourcedStr"]:
        return self._find_all(str.split(self, sep, maxsplit), len(sep or ""))

    def rsplit(self, sep: str | None = None, maxsplit: int = -1) -> list["SourcedStr"]:
        return self._find_all(str.rsplit(self, sep, maxsplit), len(sep or ""))

    def splitlines(self, keepends: bool = False) -> list["SourcedStr"]:
        whole = self._find_all(str.splitlines(self, True))
        lengths = map(len, str.splitlines(self, keepends))
        return [line[:length] for line, length in zip(whole, lengths, strict=True)]

    def partition(self, sep: str, /) -> tuple["SourcedStr", ...]:
        return tuple(self._find_all(str.partition(self, sep)))

    def rpartition(self, sep: str, /) -> tuple["SourcedStr", ...]:
        return tuple(self._find_all(str.rpartition(self, sep)))

    def _find_all(self, parts: Iterable[str], gap: int = 0) -> list["SourcedStr"]:
        """Return these parts of the string with their sources.

        They come in this order, `gap` characters apart.
        """
        located, start = [], 0
        for part in parts:
            start = str.find(self, part, start)
            located.append(self[start : start + len(part)])
            start += len(part) + gap
        return located

    def replace(self, old: str, new: str, count: int = -1, /) -> "SourcedStr":
        if not old:  # inserts `new` between all characters
            return call_with_sources(lambda text: str.replace(text, old, new, count), self)
        between = self.split(old, count) if count else [self]
        return join([part for piece in between for part in (new, piece)][1:])

    def upper(self) -> "SourcedStr":
        return self._map(str.upper)

    def lower(self) -> "SourcedStr":
        return self._map(str.lower)

    def casefold(self) -> "SourcedStr":
        return self._map(str.casefold)

    def swapcase(self) -> "SourcedStr":
        return self._map(str.swapcase)

    def title(self) -> "SourcedStr":
        return self._map(str.title)

    def capitalize(self) -> "SourcedStr":
        return self._map(str.capitalize)

    def _map(self, change: Callable[[str], str]) -> "SourcedStr":
        """Change letters; the length stays the same except for a few letters such as ß."""
        text = change(self)
        same = len(text) == len(self)
        return (
            SourcedStr(text, runs=self._runs) if same else SourcedStr(text, _first_source([self]))
        )


def join(parts: Iterable[str]) -> SourcedStr:
    """Concatenate strings with and without sources."""
    parts = list(parts)
    runs: list[Run] = []
    for part in parts:
        runs += part._runs if isinstance(part, SourcedStr) else [(len(part), None)]
    return SourcedStr("".join(parts), runs=runs)


def split_by_source(text: SourcedStr) -> Iterator[tuple[str, Any]]:
    """Yield the plain text of every run, and its source."""
    start = 0
    for length, source in text._runs:
        yield str.__getitem__(text, slice(start, start + length)), source
        start += length


def call_with_sources(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a pure function; a string that it returns has the sources of its arguments.

    The function is called again with placeholders for strings with sources. Where it changes the
    placeholders, they cannot be found again, and the whole result has their first source.
    """
    args = tuple(list(x) if isinstance(x, GeneratorType) else x for x in args)
    result = function(*args, **kwargs)
    if not isinstance(result, str):
        return result
    originals: list[SourcedStr] = []
    marked_args, marked_kwargs = (
        insert_placeholders(args, originals),
        insert_placeholders(kwargs, originals),
    )
    if not originals:
        return result
    try:
        marked = function(*marked_args, **marked_kwargs)
    except TEMPLATE_ERRORS:  # the function does not accept placeholders
        marked = ""
    rebuilt = fill_placeholders(str(marked), originals)
    if rebuilt == result:
        return rebuilt
    if isinstance(result, SourcedStr) and all(source is not None for _, source in result._runs):
        return result
    return SourcedStr("".join([result]), _first_source(originals))


def fill_placeholders(text: str, originals: list[SourcedStr]) -> SourcedStr:
    """Replace placeholders by their strings."""
    pieces = _PLACEHOLDERS.split(text)
    known = len(originals)
    return join(
        piece
        if i % 2 == 0
        else originals[int(piece)]
        if int(piece) < known
        else _PLACEHOLDER.format(piece)
        for i, piece in enumerate(pieces)
    )


def insert_placeholders(value: Any, originals: list[SourcedStr]) -> Any:
    """Return a value with a placeholder for every sourced string in it, appended to `originals`."""
    if isinstance(value, SourcedStr):
        originals.append(value)
        return _PLACEHOLDER.format(len(originals) - 1)
    if isinstance(value, dict):
        return {
            insert_placeholders(key, originals): insert_placeholders(item, originals)
            for key, item in value.items()
        }
    if type(value) in (list, tuple):
        return type(value)(insert_placeholders(item, originals) for item in value)
    return value


def merge_runs(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Drop empty runs and merge neighbouring runs of one source."""
    merged: list[Run] = []
    for length, source in runs:
        if merged and merged[-1][1] is source:
            merged[-1] = (merged[-1][0] + length, source)
        elif length:
            merged.append((length, source))
    return tuple(merged)


def _cut(runs: Iterable[Run], start: int, stop: int) -> Iterator[Run]:
    end = 0
    for length, source in runs:
        first, end = end, end + length
        if first < stop and start < end:
            yield min(end, stop) - max(first, start), source


def _first_source(texts: Iterable[SourcedStr]) -> Any:
    sources = (source for text in texts for _, source in text._runs if source is not None)
    return next(sources, None)
