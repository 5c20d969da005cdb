"""Tokenized examples of a row, or the reason why it has none."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lclm_jax.data.inputs.files import InputRow, Rejection
from lclm_jax.data.records import Section
from lclm_jax.data.rows.cells import is_blank
from lclm_jax.data.rows.field_names import SPLIT_GROUP_FIELD
from lclm_jax.data.rows.raw_examples import (
    RawExample,
    RowError,
    example_text,
    read_raw_examples,
    tokenize_example,
)
from lclm_jax.data.rows.row_errors import raise_first_error
from lclm_jax.data.shards import split_of
from lclm_jax.data.text.tokenizer import TextError, Tokenizer

MAX_DETAIL = 500  # characters of a rejection's detail


@dataclass(frozen=True)
class Example:
    """A tokenized example and the split it belongs to.

    Attributes:
        raw: the example as text, as it is stored beside the tokens.
        sections: tokens by role.
        split: "train" or "held".
        spells_control: its plain text contains the name of a control token, which is then trained
            on as plain text.
    """

    raw: RawExample
    sections: list[Section]
    split: str
    spells_control: bool


def read_examples_of(
    row: InputRow, kind: str, longest: int, tokenizer: Tokenizer
) -> Iterator[Example | Rejection]:
    """Yield the examples of a row, then one rejection if others cannot be used.

    Any exception that a row causes becomes its rejection, with reason "error" unless it is a
    RowError; only a full memory and interruptions pass through.
    """
    try:
        yield from _read_row(row.fields, kind, longest, tokenizer)
    except RowError as error:
        yield Rejection(row.file, row.number, error.reason, error.detail[:MAX_DETAIL])
    except BaseException as error:
        if not _is_caused_by_row(error):
            raise
        detail = f"{type(error).__name__}: {error}"
        yield Rejection(row.file, row.number, "error", detail[:MAX_DETAIL])


def _is_caused_by_row(error: BaseException) -> bool:
    # tokenizers is written in Rust; its panics are BaseExceptions.
    is_panic = type(error).__name__ == "PanicException"
    return is_panic or (isinstance(error, Exception) and not isinstance(error, MemoryError))


def _read_row(
    fields: Mapping[str, Any], kind: str, longest: int, tokenizer: Tokenizer
) -> Iterator[Example]:
    """Yield the usable examples of a row, and raise RowError after them for the others.

    The row's `split_group`, if it has one, decides the split; otherwise each example's own text.
    """
    group = fields.get(SPLIT_GROUP_FIELD)
    count, problems = 0, []
    try:
        for raw in read_raw_examples(fields, kind, tokenizer, longest):
            count += 1
            try:
                sections = tokenize_example(raw, tokenizer)
            except TextError as error:
                problems.append(RowError("chat", str(error)))
                continue
            if not any(len(section.tokens) for section in sections):
                problems.append(RowError("empty", "expected words, got none"))
                continue

            words = example_text(raw)
            split = split_of(words if is_blank(group) else str(group))
            yield Example(raw, sections, split, spells_control(words, tokenizer))
    except RowError as error:
        problems.append(error)
    raise_first_error(problems, count)


def spells_control(text: str, tokenizer: Tokenizer) -> bool:
    """Return whether a text contains the name of a control token."""
    return any(name in text for name in tokenizer.control)
