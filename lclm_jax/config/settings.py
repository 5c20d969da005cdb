"""Types and ranges of settings, declared in annotations and checked in one place.

`rows: Size` or `share: Annotated[float, Range(least=0)]` declares a field. `Settings` checks every
field when an instance is made, whether by Python, `key=value` or JSON.
"""

import dataclasses
import difflib
import math
import os
import re
import reprlib
import types
import typing
from collections.abc import Iterable
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeVar, cast

from lclm_jax.config.renamed import current_names, log_renamed
from lclm_jax.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


class Settings:
    """Base of frozen config dataclasses.

    Raises ConfigError for a field whose value is of another type or out of range.
    """

    def __post_init__(self):
        for name, hint in field_hints(type(self)).items():
            value = parse(hint, getattr(self, name), f"{type(self).__name__}.{name}")
            object.__setattr__(self, name, value)


class Rule(Protocol):
    """Metadata of an annotation: a condition on a value of the annotated type."""

    def holds(self, value: Any) -> bool:
        """Return True where the value fulfils the condition."""
        ...


@dataclasses.dataclass(frozen=True)
class Range:
    """An interval of numbers that includes `least` and `most`, but not `above` and `below`.

    `also` lists single numbers that are allowed outside the interval.

    >>> str(Range(least=0, below=1))
    'at least 0 and below 1'
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    also: tuple[float, ...] = ()

    def holds(self, value: float) -> bool:
        return value in self.also or (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            return ", or ".join([f"from {self.least} to {self.most}", *map(str, self.also)])
        bounds = {
            "at least": self.least,
            "above": self.above,
            "at most": self.most,
            "below": self.below,
        }
        interval = " and ".join(f"{word} {x}" for word, x in bounds.items() if x is not None)
        return ", or ".join([interval, *map(str, self.also)])


@dataclasses.dataclass(frozen=True)
class Ascending:
    """A pair whose first number is not larger than its second."""

    def holds(self, value: tuple[float, float]) -> bool:
        return value[0] <= value[1]

    def __str__(self) -> str:
        return "the smaller first"


@dataclasses.dataclass(frozen=True)
class NotEmpty:
    """A text or list with at least one element."""

    def holds(self, value: Any) -> bool:
        return len(value) > 0

    def __str__(self) -> str:
        return "not empty"


@dataclasses.dataclass(frozen=True)
class RegularExpression:
    """A text that `re` compiles."""

    def holds(self, value: str) -> bool:
        try:
            re.compile(value)
        except (re.error, RecursionError, OverflowError):
            return False
        return True

    def __str__(self) -> str:
        return "a regular expression"


@dataclasses.dataclass(frozen=True)
class PlainFileName:
    """A text that can name a file on every system: printable, no separators, at most 200 bytes."""

    def holds(self, value: str) -> bool:
        printable = value.isprintable() and value.strip() == value and value not in ("", ".", "..")
        return printable and not set(value) & set('/\\:*?"<>|') and len(value.encode()) <= 200

    def __str__(self) -> str:
        return 'a file name without / \\ : * ? " < > |'


@dataclasses.dataclass(frozen=True)
class HomePath:
    """A path in which a leading `~` stands for the home directory."""

    def holds(self, value: str) -> bool:
        return "\0" not in value


MAX_INT32 = 2**31 - 1  # integers become int32 on the devices
Size = Annotated[int, Range(least=1, most=MAX_INT32)]
Count = Annotated[int, Range(least=0, most=MAX_INT32)]
Seed = Annotated[int, Range(least=0, most=2**32 - 1)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(least=0)]
Interval = Annotated[tuple[Size, Size], Ascending()]
FileName = Annotated[str, PlainFileName()]
Pattern = Annotated[str, RegularExpression()]
Location = Annotated[str, HomePath()]  # a path, which may be empty
Directory = Annotated[str, HomePath(), NotEmpty()]


@cache
def field_hints(kind: type) -> dict[str, Any]:
    """Return the annotation of every field of a dataclass, ranges included."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def from_dict(kind: type[T], values: dict[str, Any], path: str = "") -> T:
    """Build `kind` from nested dicts; keys from before a renaming are read, too.

    Raises ConfigError for an unknown or missing key and for a bad value.
    """
    hints = field_hints(kind)
    log_renamed(kind, values, path)
    values = current_names(kind, values, path)
    for key in values:
        check_key(key, hints, path)
    required = [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    missing = [f"{path}{name}" for name in required if name not in values]
    if missing:
        raise ConfigError(f"expected a value of {', '.join(missing)}, got none")
    parsed = {key: parse(hints[key], value, f"{path}{key}") for key, value in values.items()}
    try:
        return kind(**parsed)
    except ConfigError as error:  # from a check across fields
        raise ConfigError(f"{path[:-1]}: {error}" if path else str(error)) from error


def check_key(key: Any, known: Iterable[str], path: str):
    """Raise ConfigError, with a similar key as a suggestion, unless `key` is `known`."""
    known = list(known)
    if key in known:
        return
    near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
    hint = f": did you mean {path}{near[0]}? Settings here: {', '.join(known)}" if near else ""
    raise ConfigError(f"unknown setting {path}{key}{hint}")


def parse(hint: Any, value: Any, path: str) -> Any:
    """Return `value` converted to the annotation `hint`; `path` names the setting in errors.

    Converts integers to float, numbers of numpy to those of Python, lists to tuples, dicts to
    dataclasses, and a leading `~` to the home directory. Raises ConfigError for any other type and
    for a value out of range.
    """
    kind, rules = _split(hint)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        (inner,) = [member for member in arguments if member is not types.NoneType]
        if value is None:
            return None
        try:
            parsed = parse(inner, value, path)
        except ConfigError as error:
            if typing.get_origin(_split(inner)[0]) is tuple:
                raise  # the error names the element
            raise _refusal(hint, value, path) from error
    elif isinstance(kind, type) and dataclasses.is_dataclass(kind):
        parsed = from_dict(kind, value, f"{path}.") if isinstance(value, dict) else value
        if not isinstance(parsed, kind):
            raise _refusal(hint, value, path)
    elif origin is tuple:
        parsed = _parse_tuple(hint, arguments, value, path)
    else:
        parsed = _parse_single(hint, kind, value, path)
    if not all(rule.holds(parsed) for rule in rules):
        raise _refusal(hint, value, path)
    if any(isinstance(rule, HomePath) for rule in rules):
        parsed = expand_home(cast(str, parsed))
    return parsed


def _parse_tuple(hint: Any, arguments: tuple, value: Any, path: str) -> tuple:
    if not isinstance(value, (list, tuple)):
        raise _refusal(hint, value, path)
    kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
    if len(kinds) != len(value):
        raise ConfigError(f"{path} takes {len(kinds)} values, got {reprlib.repr(value)}")
    return tuple(
        parse(kind, item, f"{path}.{i}")
        for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
    )


def _parse_single(hint: Any, kind: Any, value: Any, path: str) -> Any:
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if isinstance(value, str) and value in choices:
            return value
        listed = ", ".join(map(repr, choices))
        raise ConfigError(f"{path} must be one of {listed}, got {reprlib.repr(value)}")
    if kind is int and isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if kind is float and isinstance(value, Real) and not isinstance(value, bool):
        number = _to_float(value)
        if math.isfinite(number):
            return number
    elif kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    elif kind not in (int, float) and isinstance(value, kind):
        return value
    raise _refusal(hint, value, path)


def _to_float(value: Real) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _split(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return the type of an annotation, and the rules beside it."""
    if typing.get_origin(hint) is Annotated:
        kind, *rules = typing.get_args(hint)
        return kind, tuple(rules)
    return hint, ()


def _refusal(hint: Any, value: Any, path: str) -> ConfigError:
    return ConfigError(f"{path} must be {describe(hint)}, got {reprlib.repr(value)}")


def describe(hint: Any) -> str:
    """Return a type and its range in words.

    >>> describe(Annotated[int, Range(least=1)] | None)
    'an integer, at least 1, or none'
    """
    kind, rules = _split(hint)
    words = {int: "an integer", float: "a finite number", bool: "true or false", str: "text"}
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        (inner,) = [member for member in arguments if member is not types.NoneType]
        name = f"{describe(inner)}, or none"
    elif typing.get_origin(kind) is tuple:
        count = "" if arguments[-1] is Ellipsis else f"{len(arguments)} of "
        name = f"a list, {count}each {describe(arguments[0])}"
    else:
        name = words.get(kind) or f"a group of settings ({kind.__name__})"
    return ", ".join([name, *(str(rule) for rule in rules if not isinstance(rule, HomePath))])


def expand_home(path: str) -> str:
    """Return a path with a leading `~` or `~user` replaced by the home directory.

    Raises ConfigError for an unknown user.
    """
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError as error:
        raise ConfigError(
            f"{path}: no home directory for {path.split('/')[0]}; name the path in full, or write "
            f"./{path}"
        ) from error
