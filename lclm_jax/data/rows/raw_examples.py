"""Conversion of input rows to raw examples, and of raw examples to sections of tokens.

A raw example is stored beside its tokens, so that another tokenizer can read it later. It is one of

- `{"text": str}`,
- `{"messages": [...], "tools": [...]}`, with messages as in `lclm_jax.data.rows.dataset_messages`,
- `{"spans": [{"context": str} | {"text": str}, ...]}`.

In examples written by earlier versions, a content may also hold parts
`{"analysis", "before", "after"}`.
"""

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from lclm_jax.data.chat.chat import tokenize_chat
from lclm_jax.data.records import Role, Section
from lclm_jax.data.rows.cells import decode_text, is_blank
from lclm_jax.data.rows.chat_rows import read_chat_row
from lclm_jax.data.rows.checks import (
    MAX_UNSPLIT_CHARACTERS,
    check_length,
    check_memory_tags,
    check_split_points,
    check_surrogates,
)
from lclm_jax.data.rows.expand_chat import build_expand_chat
from lclm_jax.data.rows.field_names import DOCUMENT_FIELDS
from lclm_jax.data.rows.packed_rows import read_packed_row
from lclm_jax.data.rows.row_errors import RowError, describe_fields
from lclm_jax.data.text.tokenizer import Tokenizer

RawExample = dict[str, Any]
__all__ = ["RawExample", "RowError", "example_text", "read_raw_examples", "tokenize_example"]


def read_raw_examples(
    fields: Mapping[str, Any], kind: str, tokenizer: Tokenizer, longest: int
) -> Iterator[RawExample]:
    """Yield the raw examples in a row of a source of this kind (see `lclm_jax.config.Source`).

    Rows of every kind but "packed" hold one. `longest` limits its characters. Raises RowError for a
    row that cannot be used, for packed rows after their usable examples.
    """
    if kind == "packed":
        yield from read_packed_row(fields, longest)
    elif kind == "chat":
        yield read_chat_row(fields, longest)
    elif kind == "expand":
        text = _document(fields, longest, tokenizer)
        chat = build_expand_chat(text, tokenizer, *_read_question(fields))
        if chat is None:
            raise _no_trace_error(fields)
        yield chat
    else:
        yield {"text": _document(fields, longest, tokenizer)}


def tokenize_example(raw: RawExample, tokenizer: Tokenizer) -> list[Section]:
    """Return the sections of an example; raises TextError for a chat that cannot be rendered."""
    if "text" in raw:
        return [Section(tokenizer.encode(raw["text"]), Role.DOCUMENT)]
    if "spans" in raw:
        return [
            Section(tokenizer.encode(span["context"]), Role.CONTEXT)
            if "context" in span
            else Section(tokenizer.encode(span["text"]), Role.ANSWER)
            for span in raw["spans"]
        ]
    rendered = tokenize_chat(raw["messages"], tokenizer, raw.get("tools") or ())
    return [part for part in rendered if isinstance(part, Section)]


def example_text(raw: RawExample) -> str:
    """Return all words of an example.

    Their hash decides the split of the example, and new tokenizers are trained on them.
    """
    if "text" in raw:
        return raw["text"]
    if "spans" in raw:
        return "".join(text for span in raw["spans"] for text in span.values())

    words = []
    for message in raw["messages"]:
        content = message.get("content") or ""
        words.append(message["role"])
        parts = _split_markers(message["role"], content) if isinstance(content, str) else content
        words += [
            part[name] for part in parts for name in ("text", "context", "analysis") if name in part
        ]
        if message.get("tool_calls"):
            words.append(json.dumps(message["tool_calls"], ensure_ascii=False))
        words += [
            message[name]
            for name in ("reasoning_content", "name", "tool_call_id")
            if name in message
        ]
    if raw.get("tools"):
        words.append(json.dumps(raw["tools"], ensure_ascii=False))
    return "\n".join(words)


def _split_markers(role: str, content: str) -> list[RawExample]:
    """Return the texts around and between the markers of an assistant's reasoning.

    Markers are not words: a template may spell them in another way.
    """
    for name in ("think", "analysis", "thinking", "reasoning") if role == "assistant" else ():
        before, _, rest = content.partition(f"<{name}>")
        thought, closed, after = rest.partition(f"</{name}>")
        if thought and closed:
            return [{"text": text} for text in (before, thought, after) if text]
    return [{"text": content}]


def _document(fields: Mapping[str, Any], longest: int, tokenizer: Tokenizer) -> str:
    """Return the text of a document, the first of its fields with words."""
    given = {
        name: fields[name] for name in DOCUMENT_FIELDS if isinstance(fields.get(name), (str, bytes))
    }
    if not given:
        raise RowError(
            "fields",
            f"expected text in one of {', '.join(DOCUMENT_FIELDS)}, got {describe_fields(fields)}",
        )
    texts = (decode_text(name, value) for name, value in given.items())
    text = next((text for text in texts if text.strip()), None)
    if text is None:
        raise RowError("empty", f"expected words in {' or '.join(given)}, got none")

    check_length(len(text), longest)
    check_surrogates(text)
    check_memory_tags(text)
    check_split_points(text)
    if len(text) > 2 * MAX_UNSPLIT_CHARACTERS and not _splits(tokenizer.definition):
        raise RowError(
            "too long",
            f"expected at most {2 * MAX_UNSPLIT_CHARACTERS} characters for a tokenizer that takes "
            f"a text for one word, got {len(text)}; split the document",
        )
    return text


@lru_cache(maxsize=1)
def _splits(definition: str) -> bool:
    """Return whether a tokenizer splits text into words before its model encodes it."""
    return json.loads(definition).get("pre_tokenizer") is not None


def _read_question(fields: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return a question and the first of its answers, each None where the row lacks it."""
    question, answer = fields.get("question"), fields.get("answer") or fields.get("answers")
    if isinstance(answer, list) and answer:
        answer = answer[0]
    return (
        None if is_blank(question) else decode_text("question", question),
        None if is_blank(answer) else decode_text("answer", answer),
    )


def _no_trace_error(fields: Mapping[str, Any]) -> RowError:
    """Return the error for a text without a trace of expansions."""
    expected = "the answer in it" if fields.get("question") else "a line to ask for"
    message = f"expected a text of two chunks or more with {expected}, got none"
    return RowError("no answer", message)
