"""Rows of the published training data of the paper: text with turns and memory tags written out."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lclm_jax.data.chat.context_tags import split_context_tags
from lclm_jax.data.rows.cells import JsonObject
from lclm_jax.data.rows.chat_rows import check_chat_example
from lclm_jax.data.rows.checks import (
    check_depth,
    check_length,
    check_split_points,
    check_surrogates,
)
from lclm_jax.data.rows.dataset_messages import read_role
from lclm_jax.data.rows.field_names import ANSWER_FIELDS, DOCUMENT_FIELDS
from lclm_jax.data.rows.row_errors import RowError, describe_fields, raise_first_error
from lclm_jax.data.text.tokenizer import (
    MEMORY_END,
    MEMORY_SLOT,
    MEMORY_START,
    PAD,
    TURN_END,
    TURN_START,
    TextError,
)

TURN_MARK = re.compile(rf"({re.escape(TURN_START)}|{re.escape(TURN_END)})")


def read_packed_row(fields: Mapping[str, Any], longest: int) -> Iterator[JsonObject]:
    """Yield the examples of a row, which holds a text or nested lists of texts.

    Raises RowError after the usable examples if there are others, or if there are none at all.
    """
    check_depth(fields)
    count, problems = 0, []
    for text in _texts(fields):
        count += 1
        try:
            example = _read_example(text, longest)
        except RowError as error:
            problems.append(error)
        else:
            yield example
    if not count:
        raise RowError(
            "fields",
            "expected text with turns or memory tags, or lists of such, "
            f"got {describe_fields(fields)}",
        )
    raise_first_error(problems, count)


def _texts(value: Any) -> Iterator[str | Mapping[str, Any]]:
    """Yield the texts of a row.

    An object with more texts than an example has is yielded unchanged, for the error that names it.
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, Mapping):
        texts, answers = (
            [value[name] for name in names if isinstance(value.get(name), str) and value[name]]
            for names in ((*DOCUMENT_FIELDS, "prompt"), ANSWER_FIELDS)
        )
        if len(texts) > 1 or len(answers) > 1 or not {"role", "from"}.isdisjoint(value):
            yield value
        elif texts:
            yield "".join([*texts, *answers])
        else:
            yield from _texts([part for part in value.values() if not isinstance(part, str)])


def _read_example(text: str | Mapping[str, Any], longest: int) -> JsonObject:
    """Return a text as a raw example: a chat if it has turns, else spans."""
    if not isinstance(text, str):
        raise RowError("fields", f"expected one text, and one answer, got {describe_fields(text)}")
    check_length(len(text), longest)
    check_surrogates(text)
    check_split_points(text)
    if not text.strip():
        raise RowError("empty", "expected words, got none")

    if MEMORY_SLOT in text:
        raise RowError(
            "memory tags",
            f"expected text between {MEMORY_START} and {MEMORY_END}, got {MEMORY_SLOT}",
        )
    try:
        if not TURN_MARK.search(text):
            return {"spans": _parts(text)}
        messages = [{"role": role, "content": _content(content)} for role, content in _turns(text)]
    except TextError as error:
        raise RowError("memory tags", str(error)) from error
    return check_chat_example({"messages": messages}, longest)


def _content(text: str) -> str | list[JsonObject]:
    """Return the content of a turn: parts if it has contexts, else text."""
    parts = _parts(text)
    return parts if any("context" in part for part in parts) else text


def _parts(text: str) -> list[JsonObject]:
    """Return text around memory tags as parts."""
    return [
        {"context" if is_context else "text": piece}
        for piece, is_context in split_context_tags(text)
    ]


def _turns(text: str) -> Iterator[tuple[str, str]]:
    """Yield the role and content of each turn, of which the last may lack its end.

    Raises RowError for text outside of turns.
    """
    before, *marked = TURN_MARK.split(text)
    _refuse_outside(before)
    turn: str | None = None
    for mark, body in zip(marked[::2], marked[1::2], strict=True):
        if mark == TURN_START:
            if turn is not None:
                raise RowError(
                    "chat", f"expected {TURN_END} before the next turn, got {turn!r:.80}"
                )
            turn = body
        else:
            if turn is None:
                raise RowError("chat", f"expected a turn before {TURN_END}, got none")
            yield _split_turn(turn)
            turn = None
            _refuse_outside(body)
    if turn is not None:
        yield _split_turn(turn)


def _split_turn(text: str) -> tuple[str, str]:
    """Return the role, which is the first line of a turn, and the content after it."""
    role, _, content = text.partition("\n")
    role = read_role(role)
    if role in ("user", "assistant") and not content.strip():
        raise RowError("empty", f"expected words in the turn of the {role}, got none")
    return role, content


def _refuse_outside(text: str):
    """Raise RowError for text between turns other than padding and spaces."""
    if text.replace(PAD, "").strip():
        raise RowError(
            "chat", f"expected turns alone, got text outside of them: {text.strip()!r:.80}"
        )
