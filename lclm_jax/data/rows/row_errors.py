"""The error of a row that cannot become an example, and how values are quoted in it."""

from collections.abc import Mapping, Sequence
from typing import Any

from lclm_jax.errors import UserError

MAX_QUOTED_CHARACTERS = 80
MAX_LISTED_CHARACTERS = 200


class RowError(UserError):
    """A row that cannot become an example.

    `reason` is one of a fixed set, which reports count by: "fields", "empty", "too long",
    "memory tags", "chat", "encoding" or "no answer". `detail` says what was expected and found.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def raise_first_error(errors: Sequence[RowError], count: int):
    """Raise the first error of a row that holds `count` examples, if there is an error."""
    if not errors:
        return

    first = errors[0]
    share = f"{len(errors)} of {count} examples of the row, first: " if count > 1 else ""
    raise RowError(first.reason, f"{share}{first.detail}")


def describe_fields(fields: Mapping[str, Any]) -> str:
    """Return the names and types of a row's fields, for an error message."""
    names = [f"{name} ({type(value).__name__})" for name, value in fields.items()]
    return ", ".join(names)[:MAX_LISTED_CHARACTERS] or "no fields"


def abbreviate(value: Any) -> str:
    """Return the beginning of a value's `repr`, or its type where `repr` fails."""
    try:
        return repr(value)[:MAX_QUOTED_CHARACTERS]
    except (ValueError, RecursionError):  # an integer of thousands of digits, or deep nesting
        return type(value).__name__
