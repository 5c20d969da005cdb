"""Reading single values of a row: blanks, text, JSON and nested strings."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from lclm_jax.data.rows.row_errors import RowError, abbreviate

JsonObject = dict[str, Any]


def is_blank(value: Any) -> bool:
    """Return whether a value is one that datasets write for an absent field.

    >>> [is_blank(value) for value in (None, "", [], float("nan"), 0, False)]
    [True, True, True, True, False, False]
    """
    if isinstance(value, float):
        return value != value  # NaN, as pandas writes missing cells
    is_container = isinstance(value, (str, bytes, list, tuple, dict))
    return value is None or (is_container and not value)


def decode_text(name: str, value: Any) -> str:
    """Return text as it is and bytes decoded as UTF-8; `name` is the field, for the error.

    Raises RowError with reason "fields" for other types and "encoding" for other bytes.
    """
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            message = f"expected UTF-8 in {name}, got bytes that are not: {error}"
            raise RowError("encoding", message) from error

    if not isinstance(value, str):
        raise RowError("fields", f"expected text in {name}, got {type(value).__name__}")
    return value


def parse_json(name: str, text: str) -> Any:
    """Return the value of JSON text; raises RowError with reason "chat" for other text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        message = f"expected JSON in {name}, got {abbreviate(text)}: {error}"
        raise RowError("chat", message) from error


def iterate_strings(value: Any) -> Iterator[str]:
    """Yield every string in nested lists and objects, except object keys and roles."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from iterate_strings(item)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            if name not in ("role", "from"):
                yield from iterate_strings(item)
