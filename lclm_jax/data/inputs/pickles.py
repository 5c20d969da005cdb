"""Unpickling that makes nothing but dict, list, str, int, bool and None.

The training rows of the PyTorch original are pickles. The instructions of a pickle are read before
any of them is executed, and every instruction that could import, call or construct is refused.
"""

import io
import pickle
import pickletools
from typing import Any

from lclm_jax.errors import UserError

MAX_BYTES = 1 << 30
# Characters and parts a value may have for each byte of its pickle, repeated parts counted again.
MAX_EXPANSION = 1000
ALLOWED_OPCODES = frozenset(
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
DAMAGE_ERRORS = (
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    AttributeError,
    pickle.UnpicklingError,
)


class PickleError(UserError):
    """A pickle that is damaged, or contains more than plain data."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise PickleError(f"expected plain data, got the name {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise PickleError(f"expected plain data, got a reference to {pid!r}")


def load_plain(data: bytes, max_bytes: int = MAX_BYTES) -> Any:
    """Return the dict, list, str or int of a pickle.

    Raises PickleError for a pickle that is too large, damaged, or more than plain data, and for
    values that contain themselves or grow far beyond the size of the pickle.
    """
    if len(data) > max_bytes:
        raise PickleError(f"expected a pickle of at most {max_bytes} bytes, got {len(data)}")
    try:
        _check_opcodes(data)
        value = _Unpickler(io.BytesIO(data)).load()
    except DAMAGE_ERRORS as error:
        raise PickleError(
            f"expected a whole pickle, got {len(data)} bytes that end or break: {error}"
        ) from error
    if not _is_bounded(value, min(max_bytes, MAX_EXPANSION * (len(data) + 1))):
        raise PickleError(
            "expected plain data, got values that hold themselves or repeat others without end"
        )
    return value


def _check_opcodes(data: bytes):
    """Raise PickleError for an instruction that is not allowed."""
    memo_size = 0
    for opcode, argument, position in pickletools.genops(data):
        memo_size += opcode.name == "MEMOIZE" or opcode.name.endswith("PUT")
        # The unpickler allocates a memo as large as the largest number in the pickle.
        if opcode.name.endswith(("PUT", "GET")) and int(argument or 0) > memo_size:
            raise PickleError(
                f"expected values numbered in turn, got {opcode.name} {argument} at byte {position}"
            )
        if opcode.name not in ALLOWED_OPCODES:
            raise PickleError(
                "expected a pickle of dict, list, str and int, got the instruction "
                f"{opcode.name} at byte {position}; write such rows as JSON"
            )


def _is_bounded(value: Any, max_size: int) -> bool:
    """Return whether a value has at most `max_size` characters and parts when written out.

    A value that contains itself has no end.
    """
    waiting, size = [value], 0
    while waiting and size <= max_size:
        part = waiting.pop()
        size += 1
        if isinstance(part, str):
            size += len(part)
        elif isinstance(part, list):
            waiting += part
        elif isinstance(part, dict):
            waiting += [*part, *part.values()]
    return size <= max_size
