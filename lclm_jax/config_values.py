"""A config as plain values: nested dicts that fit JSON, `key=value` from a command line, and what differs between two.

The command line changes single fields with `override(config, "stages.adapter.steps=100")`; a checkpoint keeps the result of
`to_dict` beside the weights.
"""

import dataclasses
import difflib
import types
import typing
from typing import Any, Literal, TypeVar

from lclm_jax.config import ConfigError

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """The config as nested dicts and lists, fit for JSON; `from_dict` is its inverse."""
    return dataclasses.asdict(config)


def from_dict(kind: type[T], values: dict[str, Any], path: str = "") -> T:
    """Builds `kind` from nested dicts. Raises ConfigError on an unknown or missing key or a value of another type."""
    hints = typing.get_type_hints(kind)
    for key in values:
        _check_key(key, hints, path)
    parsed = {key: _parse(hints[key], value, f"{path}{key}") for key, value in values.items()}
    try:
        return kind(**parsed)
    except TypeError as error:
        raise ConfigError(f"{path or kind.__name__}: {error}") from error


def differences(old: Any, new: Any, path: str = "") -> dict[str, list[Any]]:
    """[old, new] of every setting that differs between two configs as nested dicts, by its path; elements of lists by name.

    >>> differences({"data": {"rows": 8}}, {"data": {"rows": 16}})
    {'data.rows': [8, 16]}
    """
    if (
        isinstance(old, list)
        and isinstance(new, list)
        and all(isinstance(one, dict) for one in (*old, *new))
    ):
        old, new = (
            {one.get("name", str(i)): one for i, one in enumerate(items)} for items in (old, new)
        )
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return {} if old == new else {path[:-1]: [old, new]}
    changed: dict[str, list[Any]] = {}
    for key in dict.fromkeys((*old, *new)):
        changed |= differences(old.get(key), new.get(key), f"{path}{key}.")
    return changed


def override(config: T, assignment: str) -> T:
    """One command-line change, `a.b=value`. Elements of a tuple are named by their `name` field or their index.

    >>> override(Config(...), "stages.adapter.steps=10")
    Raises ConfigError naming the nearest key when there is no such field.
    """
    path, equals, text = assignment.partition("=")
    if not equals:
        raise ConfigError(f"expected key=value, got {assignment!r}")
    return _override(config, path.strip().split("."), text.strip(), "")


def _override(node: Any, keys: list[str], text: str, path: str) -> Any:
    key, rest = keys[0], keys[1:]
    if isinstance(node, tuple):
        names = [getattr(item, "name", str(i)) for i, item in enumerate(node)]
        if key.isdigit() and int(key) < len(node):
            key = names[int(key)]
        _check_key(key, names, path)
        i = names.index(key)
        if not rest:
            raise ConfigError(
                f"{path}{key} is a group of settings; name one of them, as in {path}{key}.<field>=value"
            )
        return (*node[:i], _override(node[i], rest, text, f"{path}{key}."), *node[i + 1 :])
    if not dataclasses.is_dataclass(node):
        raise ConfigError(f"{path[:-1]} is a single value and has no field {key!r}")
    hints = typing.get_type_hints(type(node))
    _check_key(key, hints, path)
    old = getattr(node, key)
    value = (
        _override(old, rest, text, f"{path}{key}.")
        if rest
        else _parse(hints[key], _literal(text), f"{path}{key}")
    )
    return dataclasses.replace(node, **{key: value})


def _check_key(key: str, known: typing.Iterable[str], path: str):
    known = list(known)
    if key in known:
        return
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    raise ConfigError(
        f"unknown setting {path}{key}: did you mean {path}{near[0]}? Settings here: {', '.join(known)}"
    )


def _literal(text: str) -> Any:
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    if "," in text:
        return [_literal(part) for part in text.strip("()[]").split(",") if part.strip()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _parse(hint: Any, value: Any, path: str) -> Any:
    """`value` as the type `hint` asks for; the only conversions are int to float and list to tuple."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return (
            from_dict(hint, value, f"{path}.")
            if isinstance(value, dict)
            else _expect(hint, value, path)
        )
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) != len(value):
            raise ConfigError(f"{path} takes {len(kinds)} values, got {value!r}")
        return tuple(
            _parse(kind, item, f"{path}.{i}")
            for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(
                f"{path} must be one of {', '.join(map(repr, arguments))}, got {value!r}"
            )
        return value
    if origin is types.UnionType:
        return (
            None
            if value is None
            else _parse(next(kind for kind in arguments if kind is not type(None)), value, path)
        )
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return _expect(hint, value, path)


def _expect(hint: Any, value: Any, path: str) -> Any:
    kind = typing.get_origin(hint) or hint
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{path} must be {getattr(hint, '__name__', hint)}, got {value!r}")
    return value
