"""Names of the fields that rows may have, and the errors of rows that cannot be used."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from lclm_jax.data.chat.messages import THOUGHTS
from lclm_jax.data.text.cuts import cut_text
from lclm_jax.data.text.tokenizer import MEMORY_END, MEMORY_SLOT, MEMORY_START
from lclm_jax.errors import UserError

Raw = dict[str, Any]

DOCUMENT = ("text", "content", "document", "code", "context")  # the first with words is read
CHAT = ("messages", "conversations", "conversation")
QUESTION = ("prompt", "instruction", "question", "query", "problem", "input")
ANSWER = ("response", "completion", "output", "answer", "solution")
SYSTEM = ("system", "system_prompt", "system_message")
TOOLS = ("tools", "functions")
BESIDE_CHAT = (*SYSTEM, *TOOLS, *THOUGHTS, "history", "context")
# What a chat cannot be trained on, and fields with words that have no place in it.
REFUSED = (
    *("chosen", "rejected", "documents", "choices", "options"),
    *("image", "images", "audio", "audios", "video", "videos"),
)
SPLIT_GROUP = "split_group"  # rows with the same text in it go to the same split
KNOWN = frozenset(
    [
        *DOCUMENT,
        *CHAT,
        *QUESTION,
        *ANSWER,
        *BESIDE_CHAT,
        *REFUSED,
        "answers",
        "label",
        "kto_tag",
        SPLIT_GROUP,
    ]
)
FIELDS_OF_KIND = {
    "chat": KNOWN - {"answers"},
    "expand": frozenset([*DOCUMENT, "question", "answer", "answers", SPLIT_GROUP]),
}
FIELDS_OF_DOCUMENT = frozenset([*DOCUMENT, SPLIT_GROUP])

MAX_DEPTH = 64  # of lists and objects in each other
LONGEST_RUN = 1_000_000  # characters without a place to cut: some 200 bytes each in a tokenizer


class RowError(UserError):
    """A row that cannot be an example: a reason of few fixed words, and what was found.

    Reasons are "fields", "empty", "too long", "memory tags", "chat", "encoding", "no answer".
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def fields_of(kind: str) -> Collection[str] | None:
    """Fields that a source of this kind may use; None where any field may be used."""
    return None if kind == "packed" else FIELDS_OF_KIND.get(kind, FIELDS_OF_DOCUMENT)


def ignored_fields(fields: Mapping[str, Any], kind: str) -> list[str]:
    """Names of the fields with a value that no example of this kind is made from."""
    known = fields_of(kind)
    if known is None:
        return []
    return [name for name, value in fields.items() if name not in known and not is_blank(value)]


def is_blank(value: Any) -> bool:
    """Whether a value is how datasets write that a field is absent."""
    if isinstance(value, float):
        return value != value
    return value is None or (isinstance(value, (str, bytes, list, tuple, dict)) and not value)


def as_text(name: str, value: Any) -> str:
    """Text, or bytes that hold UTF-8. Raises RowError with reason "fields" or "encoding"."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise RowError(
                "encoding", f"expected UTF-8 in {name}, got bytes that are not: {error}"
            ) from error
    if not isinstance(value, str):
        raise RowError("fields", f"expected text in {name}, got {type(value).__name__}")
    return value


def from_json(name: str, text: str) -> Any:
    """The value of JSON text. Raises RowError with reason "chat"."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError("chat", f"expected JSON in {name}, got {show(text)}: {error}") from error


def strings_in(value: Any) -> Iterator[str]:
    """Every string in a value of lists and objects, without keys and without roles."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from strings_in(part)
    elif isinstance(value, Mapping):
        yield from strings_in([value[name] for name in value if name not in ("role", "from")])


def raise_first(problems: Sequence[RowError], count: int):
    """Raises the first problem of a row of `count` examples, if there is any."""
    if problems:
        share = f"{len(problems)} of {count} examples of the row, first: " if count > 1 else ""
        raise RowError(problems[0].reason, f"{share}{problems[0].detail}")


def list_fields(fields: Mapping[str, Any]) -> str:
    """Names and types of fields, for an error."""
    listed = ", ".join(f"{name} ({type(value).__name__})" for name, value in fields.items())
    return listed[:200] or "no fields"


def show(value: Any) -> str:
    """The beginning of a value as Python writes it, for an error; its type where that fails."""
    try:
        return repr(value)[:80]
    except (ValueError, RecursionError):  # a number of thousands of digits, lists in each other
        return type(value).__name__


def refuse_depth(value: Any):
    """Raises RowError for lists and objects nested more than MAX_DEPTH deep."""
    level = [value]
    for _ in range(MAX_DEPTH):
        objects = [one.values() for one in level if isinstance(one, Mapping)]
        lists = [one for one in level if isinstance(one, (list, tuple))]
        level = [part for parts in (*objects, *lists) for part in parts]
    if level:
        raise RowError(
            "fields", f"expected values nested at most {MAX_DEPTH} deep, got deeper ones"
        )


def refuse_length(length: int, longest: int):
    """Raises RowError for a row of more than `longest` characters."""
    if length > longest:
        raise RowError(
            "too long", f"expected at most {longest} characters (recipe.longest), got {length}"
        )


def refuse_runs(text: str):
    """Raises RowError for a run of characters that a tokenizer would have to hold at once.

    Text with a space, or an East Asian stop, in every LONGEST_RUN characters always passes.
    """
    if len(text) <= 2 * LONGEST_RUN:
        return
    run = max(map(len, cut_text(text, LONGEST_RUN)))
    if run > 2 * LONGEST_RUN:
        raise RowError(
            "too long",
            f"expected a space within every {LONGEST_RUN} characters, got {run} without one: "
            "a tokenizer takes some 200 bytes for each of them",
        )


def refuse_surrogates(text: str):
    """Raises RowError for text with half a surrogate pair, which has no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(
            "encoding",
            f"expected Unicode text, got half a surrogate pair at character {error.start}",
        ) from error


def refuse_tags(text: str):
    """Raises RowError for memory tags that are spelled out."""
    tag = next((tag for tag in (MEMORY_START, MEMORY_END, MEMORY_SLOT) if tag in text), None)
    if tag:
        raise RowError(
            "memory tags",
            f"got {tag} spelled out; mark what is to be compressed by parts "
            '({"context": ...}), or make the source "packed"',
        )
