"""The two forms in which a model asks for chunks: lines of text, and calls of a tool.

The paper's model writes `EXPAND: 7, 9` or `ANSWER: ...`; those of later public traces call a tool
`expand` with the names of segments, `seg_7`.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lclm_jax.data.chat import Message, Reasoning, split_reasoning
from lclm_jax.data.rows.expand_chat import write_expanded, write_first_turn
from lclm_jax.inference.agent.chunks import Chunk

DIRECTIVE = re.compile(r"(?<!\w)(EXPAND|ANSWER)[*_`]*\s*:[*_`]*")
NUMBERS = re.compile(r"(\d+)\s*(?:-|–|to|\.\.+)\s*(?:seg_)?(\d+)|(\d+)")
MAX_DIGITS = 9  # a longer number is that of no chunk
CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
EXPAND_TOOL = {
    "type": "function",
    "function": {
        "name": "expand",
        "description": "Read segments of the compressed text word for word.",
        "parameters": {
            "type": "object",
            "properties": {
                "segments": {
                    "type": "array",
                    "items": {"type": "string"},
                    "description": "names of segments, such as seg_3",
                }
            },
            "required": ["segments"],
        },
    },
}
TOOL_INSTRUCTIONS = (
    "The text below comes in named segments, compressed. Call expand to read segments word for "
    "word. Answer when you know the answer.\n\n"
)


@dataclass(frozen=True)
class Request:
    """A model's wish to read chunks.

    Attributes:
        numbers: of chunks that exist, in the order named, each once.
        unknown: numbers of no chunk, as they were written.
    """

    numbers: tuple[int, ...] = ()
    unknown: tuple[str, ...] = ()


class Form(Protocol):
    """A form in which an agent and a model talk about chunks."""

    @property
    def tools(self) -> Sequence[Any]:
        """Signatures of tools for the chat template."""
        ...

    @property
    def unit(self) -> str:
        """The word for a chunk."""
        ...

    @property
    def usage(self) -> str:
        """A line that reminds the model of the form."""
        ...

    @property
    def demand(self) -> str:
        """A line that asks for the answer at last."""
        ...

    def write_first(self, chunks: Sequence[Chunk], question: str) -> Message:
        """Return the turn with the chunks, as latents, and the question."""
        ...

    def parse(self, reply: str, count: int) -> Request | str | None:
        """Return what a reply asks for, its answer, or None if it is neither."""
        ...

    def write_reply(self, reply: str) -> Message:
        """Return a reply as a turn of the assistant."""
        ...

    def write_result(self, reply: str, chunks: Mapping[int, str], notes: Sequence[str]) -> Message:
        """Return the turn after a reply: chunks, by number, and notes. Text in it stays text."""
        ...


class TextForm:
    """`EXPAND: 7, 9` and `ANSWER: ...`, as in section 7 of the paper; the last one counts."""

    tools = ()
    unit = "chunk"
    usage = "Write EXPAND: and numbers of chunks, or ANSWER: and the answer."
    demand = "No more chunks can be expanded. Write ANSWER: and the answer."

    def write_first(self, chunks: Sequence[Chunk], question: str) -> Message:
        """Return the turn with the chunks, as latents, and the question."""
        content = write_first_turn([chunk.latents for chunk in chunks], question)
        return {"role": "user", "content": content}

    def parse(self, reply: str, count: int) -> Request | str | None:
        """Return what a reply asks for, its answer, or None if it is neither.

        >>> TextForm().parse("ANSWER: no. EXPAND: 3, 1-2, 9", 4)
        Request(numbers=(3, 1, 2), unknown=('9',))
        """
        written = without_reasoning(reply)
        directives = list(DIRECTIVE.finditer(written))
        if not directives:
            return None
        last = directives[-1]
        rest = written[last.end() :]
        if last[1] == "ANSWER":
            return rest.strip()
        return parse_numbers(rest.lstrip().partition("\n")[0], count)

    def write_reply(self, reply: str) -> Message:
        """Return a reply as a turn of the assistant."""
        return {"role": "assistant", "content": split_reasoning(reply)}

    def write_result(self, reply: str, chunks: Mapping[int, str], notes: Sequence[str]) -> Message:
        """Return the turn after a reply: chunks, by number, and notes. Text in it stays text."""
        shown = [write_expanded(chunks)] if chunks else []
        return {"role": "user", "content": [{"text": "\n\n".join([*shown, *notes])}]}


class ToolForm:
    """Calls of a tool `expand` with names of segments; a reply without a call is the answer."""

    tools = (EXPAND_TOOL,)
    unit = "segment"
    usage = "Call expand with names of segments, such as seg_1, or answer."
    demand = "No more segments can be expanded. Answer now."

    def write_first(self, chunks: Sequence[Chunk], question: str) -> Message:
        """Return the turn with the chunks, as latents, and the question."""
        content: list[Any] = [{"text": TOOL_INSTRUCTIONS}]
        for chunk in chunks:
            content += [{"text": f"seg_{chunk.number}:\n"}, chunk.latents, {"text": "\n"}]
        return {"role": "user", "content": [*content, {"text": f"\n{question}"}]}

    def parse(self, reply: str, count: int) -> Request | str | None:
        """Return the segments of all calls, the answer, or None if there is neither."""
        written = without_reasoning(reply)
        calls = CALL.findall(written)
        if not calls:
            return written.strip() or None
        arguments = [argument for call in calls for argument in _arguments_of(call)]
        return parse_numbers(", ".join(arguments), count) if arguments else None

    def write_reply(self, reply: str) -> Message:
        """Return a reply as a turn of the assistant, with its calls if they can be read."""
        parts = split_reasoning(reply)
        thoughts = [part for part in parts if isinstance(part, Reasoning)]
        written = without_reasoning(reply)
        calls = _readable_calls(written)
        if not calls:
            return {"role": "assistant", "content": parts}
        words = CALL.sub("", written).strip("\n")
        functions = [{"type": "function", "function": call} for call in calls]
        content = [*thoughts, *([words] if words else [])]
        return {"role": "assistant", "content": content, "tool_calls": functions}

    def write_result(self, reply: str, chunks: Mapping[int, str], notes: Sequence[str]) -> Message:
        """Return the turn after a reply: segments, by number, and notes. Text in it stays text.

        It is the result of the tool, or a turn of the user if the reply has no call.
        """
        shown = [f"seg_{number}:\n{text}" for number, text in chunks.items()]
        content = [{"text": "\n\n".join([*shown, *notes])}]
        if not _readable_calls(without_reasoning(reply)):
            return {"role": "user", "content": content}
        return {"role": "tool", "name": "expand", "content": content}


def without_reasoning(reply: str) -> str:
    """Return a reply without the thoughts before it."""
    return "".join(part for part in split_reasoning(reply) if isinstance(part, str))


def parse_numbers(text: str, count: int) -> Request:
    """Return the numbers and ranges in a text; chunks are numbered from 1 to `count`.

    >>> parse_numbers("chunks 4-2 and 7", 5)
    Request(numbers=(2, 3, 4), unknown=('7',))
    """
    numbers: dict[int, None] = {}
    unknown: dict[str, None] = {}
    for first, last, single in NUMBERS.findall(text):
        written = f"{first}-{last}" if first else single
        low, high = sorted(
            int(x[:MAX_DIGITS]) for x in ((first, last) if first else (single, single))
        )
        known = range(max(low, 1), min(high, count) + 1)
        numbers.update(dict.fromkeys(known))
        if low < 1 or high > count:
            unknown[written] = None
    return Request(tuple(numbers), tuple(unknown))


def _read_call(text: str) -> dict[str, Any] | None:
    """Return the name and arguments of a call in JSON; None for anything else."""
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", call.get("parameters"))
    return {"name": call["name"], "arguments": arguments if isinstance(arguments, dict) else {}}


def _readable_calls(reply: str) -> list[dict[str, Any]]:
    return [call for call in map(_read_call, CALL.findall(reply)) if call]


def _arguments_of(text: str) -> list[str]:
    """Return the arguments of a call of `expand` as texts."""
    call = _read_call(text)
    if call is None or call["name"] != "expand":
        return []
    return list(_texts_in(call["arguments"]))


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _texts_in(item)
    elif isinstance(value, str | int):
        yield str(value)


FORMS: dict[str, Form] = {"text": TextForm(), "tools": ToolForm()}
