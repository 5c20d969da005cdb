"""Configs as plain values: nested dicts for JSON, `key=value` arguments, and differences.

The command line changes single fields with `override(config, "stages.adapter.steps=100")`; a
checkpoint keeps the result of `to_dict` beside the weights.
"""

import dataclasses
import types
import typing
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from lclm_jax.config.renamed import current_name, current_names, log_renamed
from lclm_jax.config.settings import check_key, field_hints, from_dict, parse
from lclm_jax.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "differences",
    "from_dict",
    "override",
    "read_value",
    "to_dict",
    "with_current_names",
]
T = TypeVar("T", bound="DataclassInstance")


def to_dict(config: Any) -> dict[str, Any]:
    """Return the config as nested dicts and lists, fit for JSON; `from_dict` is its inverse."""
    return dataclasses.asdict(config)


def with_current_names(kind: type, values: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Return nested dicts of `kind`, complete or not, with today's names of renamed settings.

    Unlike `from_dict` it checks no values, adds no defaults and logs nothing.
    """
    hints = field_hints(kind)
    current = current_names(kind, values, path)
    return {
        name: _rename_inside(hints.get(name), value, f"{path}{name}.")
        for name, value in current.items()
    }


def _rename_inside(hint: Any, value: Any, path: str) -> Any:
    """Rename settings in the dataclass, or the list of them, that a field's annotation names."""
    if typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) is tuple and isinstance(value, (list, tuple)):
        element = typing.get_args(hint)[0]
        return [_rename_inside(element, item, f"{path}{i}.") for i, item in enumerate(value)]
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        return with_current_names(hint, value, path)
    return value


def differences(old: Any, new: Any, path: str = "") -> dict[str, list[Any]]:
    """Return [old, new] of every setting that differs between two configs, by its path.

    The configs are nested dicts; the elements of a list are matched by their `name`.

    >>> differences({"data": {"batch_rows": 8}}, {"data": {"batch_rows": 16}})
    {'data.batch_rows': [8, 16]}
    """
    if (
        isinstance(old, list)
        and isinstance(new, list)
        and all(isinstance(item, dict) for item in (*old, *new))
    ):
        old, new = (
            {item.get("name", str(i)): item for i, item in enumerate(items)} for items in (old, new)
        )
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return {} if old == new else {path[:-1]: [old, new]}
    changed: dict[str, list[Any]] = {}
    for key in dict.fromkeys((*old, *new)):
        changed |= differences(old.get(key), new.get(key), f"{path}{key}.")
    return changed


def override(config: T, *assignments: str) -> T:
    """Return the config with the changes of a command line, `a.b=value`.

    Elements of a tuple are named by their `name` field or index, as in `stages.adapter.steps=10`.
    All changes are made before fields are checked against each other.

    >>> from lclm_jax.config import RunConfig
    >>> override(RunConfig(), "save_every=10", "keep=3").save_every
    10

    Raises ConfigError for an unknown field, with the nearest name as a suggestion, and for a value
    of another type or out of range.
    """
    values = to_dict(config)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"expected key=value, got {assignment!r}")
        _assign(values, config, path.strip(), text.strip())
    return from_dict(type(config), values) if assignments else config


def _assign(values: Any, config: Any, path: str, text: str):
    """Change one value in the nested dicts of a config."""
    *parents, last = path.split(".")
    node, done = config, ""
    for key in parents:
        index = _index(node, key, done)
        node = node[index] if isinstance(node, tuple) else getattr(node, index)
        values, done = values[index], f"{done}{key}."
    index = _index(node, last, done)
    if isinstance(node, tuple):
        raise ConfigError(
            f"{path} is a group of settings; name one of them, as in {path}.<field>=value"
        )
    hint = field_hints(type(node))[index]
    values[index] = parse(hint, read_value(hint, text), path)


def _index(node: Any, key: str, path: str) -> Any:
    """Return the field name, or the index, of `key` in a dataclass or a tuple of dataclasses.

    Raises ConfigError where `node` has no such element.
    """
    if dataclasses.is_dataclass(node):
        log_renamed(type(node), [key], path)
        key = current_name(type(node), key)
        check_key(key, field_hints(type(node)), path)
        return key
    groups = isinstance(node, tuple) and node and all(map(dataclasses.is_dataclass, node))
    if not groups:
        raise ConfigError(f"{path[:-1]} is a single value and has no field {key!r}")
    names = [getattr(item, "name", str(i)) for i, item in enumerate(node)]
    if key not in names and key.isdecimal() and int(key) < len(node):
        return int(key)
    check_key(key, names, path)
    return names.index(key)


def read_value(hint: Any, text: str) -> Any:
    """Read the value of a setting: text where it is text, else a number, a word or a list."""
    if typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (inner,) = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
        return None if text.lower() in ("none", "null") else read_value(inner, text)
    return text if hint is str or typing.get_origin(hint) is Literal else _literal(text)


def _literal(text: str) -> Any:
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    if "," in text or text[:1] in ("(", "["):
        return [_literal(part.strip()) for part in text.strip("()[]").split(",") if part.strip()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
