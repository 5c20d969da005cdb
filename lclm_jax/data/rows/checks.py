"""Checks of whole rows: nesting, length, encoding and memory tags."""

from collections.abc import Iterator, Mapping
from typing import Any

from lclm_jax.data.rows.row_errors import RowError
from lclm_jax.data.text.split_points import split_text
from lclm_jax.data.text.tokenizer import MEMORY_END, MEMORY_SLOT, MEMORY_START

MAX_DEPTH = 64  # levels of lists and objects inside each other
# A tokenizer holds text between two split points at once, in about 200 bytes per character.
MAX_UNSPLIT_CHARACTERS = 1_000_000


def check_depth(value: Any):
    """Raise RowError for lists and objects nested more than MAX_DEPTH levels deep."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for item in level for child in _children(item)]

    if level:
        message = f"expected values nested at most {MAX_DEPTH} deep, got deeper ones"
        raise RowError("fields", message)


def _children(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, (list, tuple)):
        yield from value


def check_length(length: int, longest: int):
    """Raise RowError for a row of more than `longest` characters."""
    if length > longest:
        message = f"expected at most {longest} characters (recipe.max_document_chars), got {length}"
        raise RowError("too long", message)


def check_split_points(text: str):
    """Raise RowError for text with too many characters between two split points.

    Text with a space or an East Asian stop in every MAX_UNSPLIT_CHARACTERS always passes.
    """
    if len(text) <= 2 * MAX_UNSPLIT_CHARACTERS:
        return

    longest = max(len(part) for part in split_text(text, MAX_UNSPLIT_CHARACTERS))
    if longest > 2 * MAX_UNSPLIT_CHARACTERS:
        raise RowError(
            "too long",
            f"expected a space within every {MAX_UNSPLIT_CHARACTERS} characters, "
            f"got {longest} without one: a tokenizer needs about 200 bytes for each of them",
        )


def check_surrogates(text: str):
    """Raise RowError for text with an unpaired surrogate, which UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = f"expected Unicode text, got half a surrogate pair at character {error.start}"
        raise RowError("encoding", message) from error


def check_memory_tags(text: str):
    """Raise RowError for text that spells out a memory tag."""
    for tag in (MEMORY_START, MEMORY_END, MEMORY_SLOT):
        if tag in text:
            raise RowError(
                "memory tags",
                f"got {tag} in the text; give text to compress as a part "
                '({"context": ...}), or set the kind of the source to "packed"',
            )
