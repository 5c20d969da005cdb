"""Examples of a row, tokenised, or the reason why it has none."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lclm_jax.data.inputs.files import Rejection, Row
from lclm_jax.data.prepare.shards import split_of
from lclm_jax.data.records import Section
from lclm_jax.data.rows.fields import SPLIT_GROUP, is_blank, raise_first
from lclm_jax.data.rows.parse import Raw, RowError, read_examples, tokenise, words_of
from lclm_jax.data.text.tokenizer import TextError, Tokenizer

MAX_DETAIL = 500  # characters of a rejection's detail


@dataclass(frozen=True)
class Example:
    """An example of a row, tokenised."""

    raw: Raw
    sections: list[Section]
    split: str
    spells_control: bool  # as plain text, which is trained on


def read_examples_of(
    row: Row, kind: str, longest: int, tokenizer: Tokenizer
) -> Iterator[Example | Rejection]:
    """The examples of a row, then one rejection where there are others that cannot be used.

    Whatever exception a row causes is its rejection, with reason "error" where none is foreseen.
    """
    try:
        yield from _read_row(row.fields, kind, longest, tokenizer)
    except RowError as error:
        yield Rejection(row.file, row.number, error.reason, error.detail[:MAX_DETAIL])
    except BaseException as error:
        is_panic = type(error).__name__ == "PanicException"  # of Rust, as in tokenizers
        if isinstance(error, MemoryError) or not (isinstance(error, Exception) or is_panic):
            raise
        detail = f"{type(error).__name__}: {error}"
        yield Rejection(row.file, row.number, "error", detail[:MAX_DETAIL])


def _read_row(
    fields: Mapping[str, Any], kind: str, longest: int, tokenizer: Tokenizer
) -> Iterator[Example]:
    """The examples of a row; their split is that of the row's `split_group`, if it has one, else
    that of their own words.

    Raises RowError for those that cannot be used, after all the others.
    """
    group = fields.get(SPLIT_GROUP)
    count, problems = 0, []
    try:
        for raw in read_examples(fields, kind, tokenizer, longest):
            count += 1
            try:
                sections = tokenise(raw, tokenizer)
            except TextError as error:
                problems.append(RowError("chat", str(error)))
                continue
            if not sum(len(section.tokens) for section in sections):
                problems.append(RowError("empty", "expected words, got none"))
                continue
            words = words_of(raw)
            split = split_of(words if is_blank(group) else str(group))
            yield Example(raw, sections, split, spells_control(words, tokenizer))
    except RowError as error:
        problems.append(error)
    raise_first(problems, count)


def spells_control(text: str, tokenizer: Tokenizer) -> bool:
    """Whether the text spells a control token, which is trained on as plain text."""
    return any(name in text for name in tokenizer.control)
