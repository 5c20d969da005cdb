"""Unpickling that builds nothing but dict, list, str, int, bool and None.

The original's training rows are pickles. Their instructions are read before any of them is carried
out; whatever could import, call or construct is refused.
"""

import io
import pickle
import pickletools
from typing import Any

from lclm_jax.errors import UserError

LONGEST = 1 << 30  # bytes
# How much longer than the pickle its values may be, each written out wherever it stands.
GROWTH = 1000
ALLOWED = frozenset(
    [
        "PROTO",
        "FRAME",
        "STOP",
        "MARK",
        "POP",
        "POP_MARK",
        "DUP",
        "MEMOIZE",
        "GET",
        "BINGET",
        "LONG_BINGET",
        "PUT",
        "BINPUT",
        "LONG_BINPUT",
        "NONE",
        "NEWTRUE",
        "NEWFALSE",
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "UNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE",
        "BINUNICODE8",
        "EMPTY_LIST",
        "LIST",
        "APPEND",
        "APPENDS",
        "EMPTY_DICT",
        "DICT",
        "SETITEM",
        "SETITEMS",
    ]
)


class PickleError(UserError):
    """A pickle that is damaged, or holds more than plain data."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise PickleError(f"expected plain data, got the name {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise PickleError(f"expected plain data, got a reference to {pid!r}")


def load_plain(data: bytes, most: int = LONGEST) -> Any:
    """The dict, list, str or int in a pickle of at most `most` bytes. Raises PickleError."""
    if len(data) > most:
        raise PickleError(f"expected a pickle of at most {most} bytes, got {len(data)}")
    try:
        noted = 0  # values the pickle has put aside so far
        for opcode, argument, position in pickletools.genops(data):
            noted += opcode.name == "MEMOIZE" or opcode.name.endswith("PUT")
            # The unpickler makes room for as many values as the largest number it is told.
            if opcode.name.endswith(("PUT", "GET")) and int(argument or 0) > noted:
                raise PickleError(
                    f"expected values numbered in turn, got {opcode.name} {argument} at byte "
                    f"{position}"
                )
            if opcode.name not in ALLOWED:
                raise PickleError(
                    "expected a pickle of dict, list, str and int, got the instruction "
                    f"{opcode.name} at byte {position}; write such rows as JSON"
                )
        value = _Unpickler(io.BytesIO(data)).load()
    except (
        ValueError,
        EOFError,
        LookupError,
        TypeError,
        OverflowError,
        AttributeError,
        pickle.UnpicklingError,
    ) as error:
        raise PickleError(
            f"expected a whole pickle, got {len(data)} bytes that end or break: {error}"
        ) from error
    if not _is_bounded(value, min(most, GROWTH * (len(data) + 1))):
        raise PickleError(
            "expected plain data, got values that hold themselves or repeat others without end"
        )
    return value


def _is_bounded(value: Any, most: int) -> bool:
    """Whether a value, written out, has at most `most` characters and parts.

    One that holds itself has no end.
    """
    left, size = [value], 0
    while left and size <= most:
        part = left.pop()
        size += 1 + (len(part) if isinstance(part, str) else 0)
        left += (
            part
            if isinstance(part, list)
            else [*part, *part.values()]
            if isinstance(part, dict)
            else ()
        )
    return size <= most
