"""Rows of the original's public training data: text with turns and memory tags written out."""

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

MARK = re.compile(rf"({re.escape(TURN_START)}|{re.escape(TURN_END)})")


def read_packed_row(fields: Mapping[str, Any], longest: int) -> Iterator[JsonObject]:
    """The examples of a row, alone or in lists; those that can be used come first.

    Raises RowError after them where others cannot be used, or where there are none.
    """
    check_depth(fields)
    count, problems = 0, []
    for text in _texts(fields):
        count += 1
        try:
            example = _example(text, longest)
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
    """The texts of a row; an object with more texts than one example has, as it stands."""
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


def _example(text: str | Mapping[str, Any], longest: int) -> JsonObject:
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
        if not MARK.search(text):
            return {"spans": _parts(text)}
        messages = [{"role": role, "content": _content(content)} for role, content in _turns(text)]
    except TextError as error:
        raise RowError("memory tags", str(error)) from error
    return check_chat_example({"messages": messages}, longest)


def _content(text: str) -> str | list[JsonObject]:
    parts = _parts(text)
    return parts if any("context" in part for part in parts) else text


def _parts(text: str) -> list[JsonObject]:
    return [
        {"context" if is_context else "text": piece}
        for piece, is_context in split_context_tags(text)
    ]


def _turns(text: str) -> Iterator[tuple[str, str]]:
    """Roles and contents of turns; the last may be open. Raises RowError for text in no turn."""
    before, *marked = MARK.split(text)
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
            yield _turn(turn)
            turn = None
            _refuse_outside(body)
    if turn is not None:
        yield _turn(turn)


def _turn(text: str) -> tuple[str, str]:
    role, _, content = text.partition("\n")
    role = read_role(role)
    if role in ("user", "assistant") and not content.strip():
        raise RowError("empty", f"expected words in the turn of the {role}, got none")
    return role, content


def _refuse_outside(text: str):
    if text.replace(PAD, "").strip():
        raise RowError(
            "chat", f"expected turns alone, got text outside of them: {text.strip()!r:.80}"
        )
