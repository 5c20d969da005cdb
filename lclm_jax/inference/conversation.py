"""Chats of several turns, each of which reads only its new tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lclm_jax.data.chat import Message, split_reasoning
from lclm_jax.inference.answers import Answer
from lclm_jax.inference.latents import Latents
from lclm_jax.inference.prompts import Prompt
from lclm_jax.inference.sampling import GREEDY, Sampling

if TYPE_CHECKING:
    from lclm_jax.inference.language_model import LanguageModel


class Conversation:
    """A chat of several turns, each of which reads only its new tokens.

        conversation = model.conversation()
        conversation.ask([latents, "What broke?"])
        conversation.ask("Since when?")  # reads only this turn

    The tokens before are in a cache that the model keeps (`LanguageModel.prefixes`). `tools` and
    `settings` are passed to the chat template, as in `LanguageModel.chat`. `messages` are the
    turns so far; append results of tools to them.
    """

    def __init__(
        self,
        model: LanguageModel,
        tools: Sequence[Any] = (),
        settings: Mapping[str, Any] | None = None,
    ):
        self.model, self.tools, self.settings = model, tools, settings
        self.messages: list[Message] = []
        self.last: Answer | None = None

    def ask(
        self,
        content: str | Latents | Sequence[str | Latents],
        max_tokens: int = 64,
        sampling: Sampling = GREEDY,
        seed: int = 0,
    ) -> str:
        """Add a turn of the user and return the assistant's answer.

        Arguments and errors are those of `LanguageModel.chat`. The turn and the answer are added
        to `messages`, and `last` is the Answer.
        """
        messages = [
            *self.messages,
            {"role": "user", "content": self.model.compress_content(content)},
        ]
        (answer,) = self.model.answer(self._read(messages), max_tokens, sampling, seed)
        self._add(messages, answer)
        return answer.text

    def _read(self, messages: Sequence[Message]) -> Prompt:
        return self.model.read([self.model.render(messages, self.tools, self.settings)])

    def _add(self, messages: Sequence[Message], answer: Answer):
        content = split_reasoning(answer.text)
        self.messages = [*messages, {"role": "assistant", "content": content}]
        self.last = answer
