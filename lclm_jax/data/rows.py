"""Rows of the input to raw examples, and raw examples to stretches of tokens; what cannot be used is named, never guessed.

A raw example is kept beside its tokens, so that another tokenizer can read it later. It is one of
`{"text": str}`, `{"messages": [...], "tools": [...]}`, `{"spans": [{"context": str} | {"text": str}, ...]}`.
In a message, a content may be a list of `{"text"}`, `{"context"}` with a `"ratio"` if it asks for one, or
`{"analysis", "before", "after"}`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from lclm_jax.data.chat import Analysis, Part, read_messages, split_memory
from lclm_jax.data.expand import make_trace
from lclm_jax.data.messages import MARKERS
from lclm_jax.data.spans import Context
from lclm_jax.data.stretches import Role, Stretch
from lclm_jax.data.tokens import MEMORY_END, MEMORY_SLOT, MEMORY_START, TextError, Tokenizer
from lclm_jax.errors import UserError

Raw = dict[str, Any]

TEXT = (
    "text",
    "content",
    "document",
    "code",
    "context",
)  # names of a document's field, the first that is there
CHAT = ("messages", "conversations", "conversation")
ASKED = (
    ("prompt", "response"),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("question", "answer"),
    ("input", "output"),
)
ROLES = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function": "tool",
    "observation": "tool",
}
TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>\n?", re.DOTALL)


class RowError(UserError):
    """A row that cannot be an example: one of a few fixed words, and what was expected and what came."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def read_examples(
    fields: Mapping[str, Any], kind: str, tokenizer: Tokenizer, longest: int
) -> Iterator[Raw]:
    """The raw examples in a row of a source of this kind (see `lclm_jax.config.Source`); one, but for packed rows.

    Raises RowError with reason "fields", "empty", "too long", "memory tags", "chat" or "no answer".
    """
    if kind == "packed":
        yield from _packed(fields, longest)
        return
    if kind == "expand":
        text = _text(fields, longest)
        _refuse_tags(text)
        yield make_trace(text, tokenizer, *_question(fields)) or _no_trace(fields)
    elif kind == "chat":
        yield _chat(fields, longest)
    else:
        text = _text(fields, longest)
        _refuse_tags(text)
        yield {"text": text}


def tokenise(raw: Raw, tokenizer: Tokenizer) -> list[Stretch]:
    """Raises TextError for a chat that cannot be rendered."""
    if "text" in raw:
        return [Stretch(tokenizer.encode(raw["text"]), Role.DOCUMENT)]
    if "spans" in raw:
        return [
            Stretch(tokenizer.encode(span["context"]), Role.CONTEXT)
            if "context" in span
            else Stretch(tokenizer.encode(span["text"]), Role.ANSWER)
            for span in raw["spans"]
        ]
    messages = [
        message | {"content": _content(message.get("content"), tokenizer)}
        for message in raw["messages"]
    ]
    return [
        part
        for part in read_messages(messages, tokenizer, raw.get("tools") or ())
        if isinstance(part, Stretch)
    ]


def words_of(raw: Raw) -> str:
    """Everything an example says: what its hash is made of, and what a tokenizer learns from."""
    if "text" in raw:
        return raw["text"]
    if "spans" in raw:
        return "".join(text for span in raw["spans"] for text in span.values())
    said = []
    for message in raw["messages"]:
        content = message.get("content") or ""
        said.append(message["role"])
        parts = [{"text": content}] if isinstance(content, str) else content
        said += [
            part[name] for part in parts for name in ("text", "context", "analysis") if name in part
        ]
        said += (
            [json.dumps(message["tool_calls"], ensure_ascii=False)]
            if message.get("tool_calls")
            else []
        )
    return "\n".join(said)


def _content(content: Any, tokenizer: Tokenizer) -> Any:
    return (
        content
        if content is None or isinstance(content, str)
        else [_part(part, tokenizer) for part in content]
    )


def _part(part: Raw, tokenizer: Tokenizer) -> Part:
    if "context" in part:
        return Context(tokenizer.encode(part["context"]), part.get("ratio"))
    return (
        Analysis(part["analysis"], part["before"], part["after"])
        if "analysis" in part
        else part["text"]
    )


def _text(fields: Mapping[str, Any], longest: int) -> str:
    name = next((name for name in TEXT if isinstance(fields.get(name), str)), None)
    if name is None:
        raise RowError(
            "fields", f"expected a text in one of {', '.join(TEXT)}, got {_listed(fields)}"
        )
    text = fields[name]
    if not text.strip():
        raise RowError("empty", f"expected words in {name}, got none")
    _refuse_length(len(text), longest)
    return _unicode(text)


def _chat(fields: Mapping[str, Any], longest: int) -> Raw:
    name = next((name for name in CHAT if isinstance(fields.get(name), list)), None)
    asked = next(
        (pair for pair in ASKED if all(isinstance(fields.get(one), str) for one in pair)), None
    )
    if name is not None:
        messages = [_message(message) for message in fields[name]]
    elif asked is not None:
        question = "\n\n".join(
            fields[one] for one in dict.fromkeys((asked[0], "input")) if fields.get(one)
        )
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": fields[asked[1]]},
        ]
    else:
        pairs = ", ".join("+".join(pair) for pair in ASKED)
        raise RowError(
            "fields",
            f"expected messages in one of {', '.join(CHAT)}, or {pairs}, got {_listed(fields)}",
        )
    if not any(message["role"] == "assistant" for message in messages):
        raise RowError(
            "chat", f"expected an assistant who says something, got {[m['role'] for m in messages]}"
        )
    raw: Raw = {
        "messages": [
            _mark_analysis(message) if message["role"] == "assistant" else message
            for message in messages
        ]
    }
    if fields.get("tools"):
        raw["tools"] = _tools(fields["tools"])
    try:
        spelled = json.dumps(raw, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RowError(
            "chat", f"expected messages and tools that JSON can hold: {error}"
        ) from error
    _refuse_length(len(spelled), longest)
    _unicode(spelled)
    _refuse_tags(spelled)
    return raw


def _tools(tools: Any) -> list[Any]:
    """A list of signatures, which some datasets keep as text."""
    try:
        read = json.loads(tools) if isinstance(tools, str) else tools
    except (ValueError, RecursionError) as error:
        raise RowError(
            "chat", f"expected tools as a JSON list, got {str(tools)[:80]!r}: {error}"
        ) from error
    if not isinstance(read, list):
        raise RowError("chat", f"expected tools as a list, got {type(read).__name__}")
    return read


def _message(message: Any) -> Raw:
    if not isinstance(message, Mapping):
        raise RowError(
            "chat", f"expected a message with role and content, got {type(message).__name__}"
        )
    role, content = (
        message.get("role", message.get("from")),
        message.get("content", message.get("value")),
    )
    role = ROLES.get(str(role), role)
    if not isinstance(role, str) or not role.isidentifier():
        raise RowError("chat", f"expected a role such as user, got {role!r}")
    kept: Raw = {"role": role, "content": content if isinstance(content, str) else _parts(content)}
    if message.get("tool_calls"):
        if not isinstance(message["tool_calls"], list):
            raise RowError(
                "chat", f"expected tool_calls as a list, got {type(message['tool_calls']).__name__}"
            )
        kept["tool_calls"] = message["tool_calls"]
    if isinstance(message.get("reasoning_content"), str) and message["reasoning_content"]:
        kept["reasoning_content"] = message["reasoning_content"]
    if not (kept["content"] or kept.get("tool_calls") or kept.get("reasoning_content")):
        raise RowError("empty", f"expected words in the message of the {role}, got none")
    return kept


def _parts(content: Any) -> str | list[Raw]:
    if content is None:
        return ""
    if not isinstance(content, list):
        raise RowError(
            "chat",
            f"expected a content that is text or a list of parts, got {type(content).__name__}",
        )
    parts = []
    for part in content:
        named = next(
            (
                name
                for name in ("text", "context")
                if isinstance(part, Mapping) and isinstance(part.get(name), str)
            ),
            None,
        )
        if named is None:
            raise RowError(
                "chat",
                f'expected a part {{"text": ...}} or {{"context": ...}}, got {str(part)[:80]}',
            )
        ratio = part.get("ratio")
        if ratio is not None and (not isinstance(ratio, int) or ratio < 1):
            raise RowError("chat", f"expected a ratio of a whole number of tokens, got {ratio!r}")
        parts.append({name: part[name] for name in (named, "ratio") if part.get(name)})
    return parts


def _mark_analysis(message: Raw) -> Raw:
    """What the assistant thinks as a part of its own, where a field or markers tell."""
    content, thought = message["content"], message.get("reasoning_content")
    kept = {key: value for key, value in message.items() if key != "reasoning_content"}
    if thought:
        before, after = MARKERS[0]
        return kept | {
            "content": [
                {"analysis": f"\n{thought}\n", "before": before, "after": after},
                {"text": f"\n\n{content}"},
            ]
        }
    for before, after in MARKERS:
        head, found, rest = content.partition(before) if isinstance(content, str) else ("", "", "")
        thought, closed, tail = rest.partition(after)
        if found and closed and thought:
            parts = [
                {"text": head},
                {"analysis": thought, "before": before, "after": after},
                {"text": tail},
            ]
            return kept | {"content": [part for part in parts if part.get("text") != ""]}
    return kept


def _packed(fields: Mapping[str, Any], longest: int) -> Iterator[Raw]:
    """The original's public training rows: strings with turns and memory tags written out, alone or in lists."""
    found = 0
    for item in _items(fields):
        found += 1
        _refuse_length(len(item), longest)
        yield _templated(_unicode(item))
    if not found:
        raise RowError(
            "fields",
            f"expected text with turns or memory tags, or lists of such, got {_listed(fields)}",
        )


def _items(fields: Mapping[str, Any]) -> Iterator[str]:
    whole = next(
        (fields[name] for name in (*TEXT, "prompt") if isinstance(fields.get(name), str)), None
    )
    if whole is not None:
        answer = next(
            (fields[pair[1]] for pair in ASKED if isinstance(fields.get(pair[1]), str)), ""
        )
        yield whole + answer
        return
    for value in fields.values():
        for item in value if isinstance(value, list) else ():
            if isinstance(item, str):
                yield item
            elif isinstance(item, Mapping):
                yield from _items(item)


def _templated(text: str) -> Raw:
    if not text.strip():
        raise RowError("empty", "expected words, got none")
    if MEMORY_SLOT in text:
        raise RowError(
            "memory tags",
            f"expected text between {MEMORY_START} and {MEMORY_END}, got {MEMORY_SLOT}",
        )
    turns = TURN.findall(text)
    try:
        if not turns:
            return {
                "spans": [
                    {"context" if held else "text": piece} for piece, held in split_memory(text)
                ]
            }
        return {
            "messages": [{"role": role, "content": _tagged(content)} for role, content in turns]
        }
    except TextError as error:
        raise RowError("memory tags", str(error)) from error


def _tagged(content: str) -> str | list[Raw]:
    pieces = split_memory(content)
    return (
        [{"context" if held else "text": piece} for piece, held in pieces]
        if any(held for _, held in pieces)
        else content
    )


def _question(fields: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """A question and the first of its answers, where the row has them."""
    question, answer = fields.get("question"), fields.get("answer") or fields.get("answers")
    answer = answer[0] if isinstance(answer, list) else answer
    for name, value in (("question", question), ("answer", answer)):
        if value is not None and not isinstance(value, str):
            raise RowError("fields", f"expected a text in {name}, got {type(value).__name__}")
    return question, answer


def _no_trace(fields: Mapping[str, Any]) -> Raw:
    told = "the answer written in it" if fields.get("question") else "a line that can be asked for"
    raise RowError("no answer", f"expected a text of two chunks or more with {told}, got none")


def _refuse_tags(text: str):
    found = next((tag for tag in (MEMORY_START, MEMORY_END, MEMORY_SLOT) if tag in text), None)
    if found:
        raise RowError(
            "memory tags",
            f'got {found} spelled out; mark what is to be compressed by parts ({{"context": ...}}), or make the source "packed"',
        )


def _refuse_length(length: int, longest: int):
    if length > longest:
        raise RowError(
            "too long", f"expected at most {longest} characters (recipe.longest), got {length}"
        )


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(
            "encoding",
            f"expected Unicode text, got half a surrogate pair at character {error.start}",
        ) from error
    return text


def _listed(fields: Mapping[str, Any]) -> str:
    return (
        ", ".join(f"{name} ({type(value).__name__})" for name, value in fields.items())[:200]
        or "no fields"
    )
