"""Names of the fields that rows may have, and which of them each kind of source uses."""

from collections.abc import Collection, Mapping
from typing import Any

from lclm_jax.data.chat.messages import REASONING_FIELDS
from lclm_jax.data.rows.cells import is_blank

# Of several document fields, the first that has words is read.
DOCUMENT_FIELDS = ("text", "content", "document", "code", "context")
CHAT_FIELDS = ("messages", "conversations", "conversation")
QUESTION_FIELDS = ("prompt", "instruction", "question", "query", "problem", "input")
ANSWER_FIELDS = ("response", "completion", "output", "answer", "solution")
SYSTEM_FIELDS = ("system", "system_prompt", "system_message")
TOOL_FIELDS = ("tools", "functions")
CHAT_SIDE_FIELDS = (*SYSTEM_FIELDS, *TOOL_FIELDS, *REASONING_FIELDS, "history", "context")
PREFERENCE_FIELDS = ("label", "kto_tag")
# Rows with the same text in this field go to the same split.
SPLIT_GROUP_FIELD = "split_group"

# A chat cannot be trained on these, or has no place for their words.
REFUSED_FIELDS = (
    *("chosen", "rejected", "documents", "choices", "options"),
    *("image", "images", "audio", "audios", "video", "videos"),
)

KNOWN_FIELDS = frozenset(
    [
        *DOCUMENT_FIELDS,
        *CHAT_FIELDS,
        *QUESTION_FIELDS,
        *ANSWER_FIELDS,
        *CHAT_SIDE_FIELDS,
        *REFUSED_FIELDS,
        *PREFERENCE_FIELDS,
        "answers",
        SPLIT_GROUP_FIELD,
    ]
)
DOCUMENT_KIND_FIELDS = frozenset([*DOCUMENT_FIELDS, SPLIT_GROUP_FIELD])
FIELDS_BY_KIND = {
    "chat": KNOWN_FIELDS - {"answers"},
    "expand": DOCUMENT_KIND_FIELDS | {"question", "answer", "answers"},
}


def usable_fields(kind: str) -> Collection[str] | None:
    """Return the fields that a source of this kind may use, or None where it may use any."""
    if kind == "packed":
        return None
    return FIELDS_BY_KIND.get(kind, DOCUMENT_KIND_FIELDS)


def list_ignored_fields(fields: Mapping[str, Any], kind: str) -> list[str]:
    """Return the names of the fields with a value that this kind of source ignores."""
    usable = usable_fields(kind)
    if usable is None:
        return []
    return [name for name, value in fields.items() if name not in usable and not is_blank(value)]
