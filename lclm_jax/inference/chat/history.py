"""The messages of a chat at their levels: plain, as latents, or forgotten."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from lclm_jax.config import ConfigError
from lclm_jax.data.chat import Message, Reasoning
from lclm_jax.data.records import Context, count_latents
from lclm_jax.errors import TextError
from lclm_jax.inference.chat.archive import Archive, join
from lclm_jax.inference.chat.policy import LEVELS, Level, MessageSize
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.inference.latents import Latents

EARLIER = "Earlier in this conversation:\n"
STEPS = "\n\nSteps so far:\n"


@dataclass(eq=False)
class HistoryMessage:
    """A message with its level and, once it has been compressed, its latents.

    `spoken` are its texts as latents stand for them, with the role before them; latents that a
    user put into the message stay among them.
    """

    message: Message
    turn: int
    spoken: Sequence[str | Latents]
    tokens: int
    count: int  # of latents, if it is compressed
    level: Level = "plain"
    latents: Latents | None = field(default=None, repr=False)

    @property
    def size(self) -> MessageSize:
        """Role, turn, level and sizes of the message, for a policy."""
        role = str(self.message.get("role"))
        return MessageSize(role, self.turn, self.level, self.tokens, self.count)

    def in_words(self) -> Message:
        """Return the message with the texts of latents that the assistant's words became."""
        content = self.message["content"]
        if self.message.get("role") != "assistant" or not isinstance(content, list | tuple):
            return self.message
        parts = [part.text if isinstance(part, Latents) else part for part in content]
        return {**self.message, "content": parts}


class History:
    """The messages of a chat, and the shorter ones that its prompt has in their place.

    The oldest turns of which nothing is plain are one context, before the first message after
    them. Steps of a turn right after the user's message, a call of a tool with its results, are one
    context at the end of that message. Other messages at the level "latents" stand in their
    places. `ratio` is that of latents.
    """

    def __init__(self, model: LanguageModel, ratio: int | None = None):
        self.model, self.ratio = model, ratio
        self.entries: list[HistoryMessage] = []
        self._size = model.config.compression.latents_per_window
        # Latents in the place of messages, by the id of the message that they are part of.
        self._archives: dict[int, tuple[Archive, list[HistoryMessage]]] = {}

    @property
    def sizes(self) -> list[MessageSize]:
        """Sizes of the messages, for a policy."""
        return [entry.size for entry in self.entries]

    def add(self, message: Message):
        """Add a message. Raises TextError for one without a role, or without text or parts."""
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise TextError(f"expected a message with role and content, got {str(message)[:80]!r}")
        parts = self.model.compress_content(message.get("content"))
        turn = self.entries[-1].turn if self.entries else 0
        if message.get("role") == "user" and self.entries:
            turn += 1
        spoken = list_spoken(message, parts)
        texts = [part for part in spoken if isinstance(part, str)]
        given = [part for part in spoken if isinstance(part, Latents)]
        lengths = [len(self.model.tokenizer.encode(text)) for text in texts]
        count = sum(count_latents(length, self.model.config, self.ratio) for length in lengths)
        latents = sum(map(len, given))
        kept = {**message, "content": parts}
        entry = HistoryMessage(kept, turn, spoken, sum(lengths) + latents, count + latents)
        self.entries.append(entry)

    def snapshot(self) -> list[Level]:
        """Return the levels of the messages, for `restore`."""
        return [entry.level for entry in self.entries]

    def restore(self, levels: Sequence[Level]):
        """Bring back the messages, and their levels, of a `snapshot`."""
        del self.entries[len(levels) :]
        for entry, level in zip(self.entries, levels, strict=True):
            entry.level = level

    def set_levels(self, levels: Sequence[Level]):
        """Compress and forget messages; all that become latents are compressed together, once.

        Raises ConfigError for levels that a policy must not give.
        """
        check_levels([entry.level for entry in self.entries], levels)
        new = []
        for entry, level in zip(self.entries, levels, strict=True):
            if level == "latents" and entry.latents is None:
                new.append(entry)
            entry.level = level
        texts = [part for entry in new for part in entry.spoken if isinstance(part, str)]
        tokens = [self.model.tokenizer.encode(text) for text in texts]
        compressed = iter(self.model.compress_all([Context(x, self.ratio) for x in tokens]))
        for entry in new:
            parts = [next(compressed) if isinstance(p, str) else p for p in entry.spoken]
            entry.latents = join(parts, self._size)

    def messages(self) -> list[Message]:
        """Return the messages of the prompt."""
        count = self._count_archivable()
        system = [e.message for e in self.entries[:count] if e.message.get("role") == "system"]
        earlier = [e for e in self.entries[:count] if e.level == "latents"]
        rest = [entry for entry in self.entries[count:] if entry.level != "forgotten"]
        messages: list[Message] = []
        while rest:
            entry, *rest = rest
            message = _shorten(entry)
            if entry.level == "plain" and message.get("role") == "user":
                steps = list(takewhile(lambda e: e.level == "latents", rest))
                rest = rest[len(steps) :]
                message = _extend(message, after=self._write(STEPS, entry, steps))
            if not messages and earlier:
                message = _extend(message, before=[*self._write(EARLIER, None, earlier), "\n\n"])
            messages.append(message)
        return [*system, *messages]

    def _write(
        self, heading: str, place: HistoryMessage | None, entries: list[HistoryMessage]
    ) -> list[Any]:
        """Return messages as one context under a heading; nothing if there are none.

        The context is that of the prompt before with new latents at its end, or made anew where
        its start has gone.
        """
        if not entries:
            return []
        archive, known = self._archives.get(id(place), (Archive(self._size), []))
        if entries[: len(known)] != known:
            archive, known = Archive(self._size), []
        for entry in entries[len(known) :]:
            assert entry.latents is not None
            archive.append(entry.latents)
        self._archives[id(place)] = archive, entries
        return [heading, archive.latents]

    def _count_archivable(self) -> int:
        """Count the leading messages of turns of which nothing but system messages is plain."""
        plain = [e.turn for e in self.entries if e.level == "plain" and e.size.role != "system"]
        first = min(plain, default=self.entries[-1].turn if self.entries else 0)
        return sum(entry.turn < first for entry in self.entries)


def check_levels(known: Sequence[Level], levels: Sequence[Level]):
    """Raise ConfigError unless there is a level for each message, and none goes back."""
    if (
        not isinstance(levels, Sequence)
        or len(levels) != len(known)
        or not set(levels) <= set(LEVELS)
    ):
        raise ConfigError(f"expected a policy to return {len(known)} of {LEVELS}, got {levels}")
    if any(LEVELS.index(new) < LEVELS.index(old) for old, new in zip(known, levels, strict=True)):
        raise ConfigError("expected a policy to keep what is compressed or forgotten so")


def _shorten(entry: HistoryMessage) -> Message:
    """Return a message with its content as latents where they are its level."""
    if entry.level != "latents":
        return entry.message
    return {**entry.message, "content": [entry.latents]}


def _extend(message: Message, before: Sequence[Any] = (), after: Sequence[Any] = ()) -> Message:
    """Return a message with parts before and after its content."""
    content = message["content"]
    parts = content if isinstance(content, list) else [content]
    return {**message, "content": [*before, *parts, *after]} if before or after else message


def list_spoken(message: Message, parts: Any) -> list[str | Latents]:
    """Return the texts and latents of a message as one reads them later, after its role.

    Calls of tools are JSON. Raises TextError for parts that are neither text nor latents.
    """
    written = [parts] if isinstance(parts, str) else list(parts or [])
    spoken: list[str | Latents] = [f"{message.get('role')}: "]
    for part in written:
        if isinstance(part, Reasoning):
            part = f"{part.before}{part.text}{part.after}"
        elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
            part = part["text"]
        if not isinstance(part, (str, Latents)):
            raise TextError(f"expected text or latents in a chat, got {type(part).__name__}")
        spoken.append(part)
    if calls := message.get("tool_calls"):
        spoken.append(json.dumps(calls, ensure_ascii=False, default=str))
    return _join_texts([*spoken, "\n"])


def _join_texts(parts: Sequence[str | Latents]) -> list[str | Latents]:
    """Join neighbouring texts."""
    joined: list[str | Latents] = []
    for part in parts:
        last = joined[-1] if joined else None
        if isinstance(part, str) and isinstance(last, str):
            joined[-1] = last + part
        else:
            joined.append(part)
    return joined
