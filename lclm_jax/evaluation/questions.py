"""Questions about passages: the prompts that every view of an evaluation answers."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lclm_jax.data.chat import Message
from lclm_jax.inference.sampling import GREEDY, Sampling

MAX_WORDING = 300  # characters of a question that samples show


@dataclass(frozen=True)
class Passage:
    """A part of a prompt that views compress, cut or leave out."""

    text: str


@dataclass(frozen=True)
class Question:
    """A prompt with passages and, for tasks of this package, the answers that are right.

    Attributes:
        task: name of the task; rows of one task are averaged.
        number: of the row in its task.
        messages: a chat, up to the assistant's turn; each content is a list of text and passages.
            A last message of the assistant is the beginning of the answer.
        is_chat: whether the chat template is used. Otherwise the parts are continued as they are.
        references: right answers, for `metric`.
        metric: name of the function of `evaluation.metrics` that compares the answer with them.
        max_tokens: bound of the answer.
        sampling: choice of the answer's tokens, and the strings that end it.
        tags: values by which tables group questions, such as the length of the passage.
    """

    task: str
    number: int
    messages: Sequence[Message]
    is_chat: bool = True
    references: Sequence[str] = ()
    metric: str = "contains_any"
    max_tokens: int = 64
    sampling: Sampling = GREEDY
    tags: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passages(self) -> list[Passage]:
        """All passages, in order."""
        return [part for parts in self.contents for part in parts if isinstance(part, Passage)]

    @property
    def wording(self) -> str:
        """The end of the prompt without its passages, as people read it."""
        texts = [part for parts in self.contents for part in parts if isinstance(part, str)]
        return "".join(texts).strip()[-MAX_WORDING:]

    @property
    def identity(self) -> str:
        """Hash of all that the answer in a view depends on."""
        messages = [
            {**message, "content": [_describe(part) for part in message["content"]]}
            for message in self.messages
        ]
        settings = [messages, self.is_chat, self.max_tokens, asdict(self.sampling)]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    @property
    def contents(self) -> list[Sequence[str | Passage]]:
        """The parts of each message."""
        return [message["content"] for message in self.messages]


def _describe(part: str | Passage) -> str | dict[str, str]:
    return part if isinstance(part, str) else {"passage": part.text}


def ask(task: str, number: int, parts: Sequence[str | Passage], **fields: Any) -> Question:
    """Return a question of one turn of the user, made of text and passages."""
    return Question(task, number, [{"role": "user", "content": list(parts)}], **fields)
