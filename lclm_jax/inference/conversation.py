"""Chats of several turns that keep the KV cache, so each turn reads only its new tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from lclm_jax.data.chat import Message, parse_context_tags, split_reasoning
from lclm_jax.data.records import Context
from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.distributed.sharding import replicate
from lclm_jax.inference.generation import ROOM, positions_needed, prefill
from lclm_jax.inference.latents import Latents
from lclm_jax.inference.prompts import Prompt, plan_chunks
from lclm_jax.inference.sampling import GREEDY, Sampling
from lclm_jax.model.attention import Cache
from lclm_jax.typing import Params

if TYPE_CHECKING:
    from lclm_jax.inference.language_model import LanguageModel


class Conversation:
    """A chat of several turns that keeps its KV cache between them.

        conversation = model.conversation()
        conversation.ask([latents, "What broke?"])
        conversation.ask("Since when?")  # reads only this turn

    `tools` and `settings` are passed to the chat template, as in `LanguageModel.chat`.
    """

    def __init__(
        self,
        model: LanguageModel,
        tools: Sequence[Any] = (),
        settings: Mapping[str, Any] | None = None,
    ):
        self.model, self.tools, self.settings = model, tools, settings
        self.messages: list[Message] = []
        self._read: Prompt | None = None  # the contents of the cache
        self._cache: Cache | None = None
        self._weights: Params | None = None  # the model's when the cache was filled

    def ask(
        self,
        content: str | Latents | Sequence[str | Latents],
        max_tokens: int = 64,
        sampling: Sampling = GREEDY,
        seed: int = 0,
    ) -> str:
        """Add a turn of the user and return the assistant's answer.

        Arguments and errors are those of `LanguageModel.chat`. The turn and the answer are added
        to `messages`.
        """
        model = self.model
        messages = [*self.messages, {"role": "user", "content": self._compress(content)}]
        prompt = model.read([model.render(messages, self.tools, self.settings)])
        length = int(prompt.lengths[0])
        model.check_length(length, max_tokens)
        with jax.set_mesh(model.mesh):
            logits, cache = self._prefill(prompt, max(max_tokens, ROOM))
            (answer,), tokens, cache = model.write(
                logits, prompt.lengths, cache, max_tokens, sampling, seed
            )
        self._read = extended(prompt, tokens[:, : int(cache.end) - length])
        self._cache, self._weights = cache, model.weights
        self.messages = [*messages, {"role": "assistant", "content": split_reasoning(answer)}]
        return answer

    def _compress(self, content: str | Latents | Sequence[str | Latents]) -> str | list[Any]:
        """Replace the contexts of a content by their latents, so they are compressed only once."""
        model = self.model
        parts = split_content(content, model.tokenizer)
        if isinstance(parts, str):
            return parts
        return [
            model.compress_tokens(part.tokens, part.ratio) if isinstance(part, Context) else part
            for part in parts
        ]

    def _prefill(self, prompt: Prompt, room: int):
        """Run `generation.prefill` on the positions that are not in the cache."""
        model, cache = self.model, self._cache
        self._cache = None  # prefill donates it
        if cache is not None and self._read is not None and self._weights is model.weights:
            # At least one token is read again: its logits are needed.
            shared = min(shared_length(self._read, prompt), int(prompt.lengths[0]) - 1)
            rest = without_first(prompt, shared)
            needed = positions_needed(plan_chunks(rest, model.config), room)
            if shared + needed <= cache.length:
                cache = replace(cache, end=replicate(np.int32(shared)))
                return prefill(model.weights, rest, model.config, room, cache, shared)
        return prefill(model.weights, prompt, model.config, room)


def shared_length(first: Prompt, other: Prompt) -> int:
    """Count the leading positions, tokens and latents, that two one-row prompts share."""
    length = min(int(first.lengths[0]), int(other.lengths[0]))
    same = first.tokens[0, :length] == other.tokens[0, :length]
    same &= _sources(first, length) == _sources(other, length)
    return length if same.all() else int(np.argmin(same))


def _sources(prompt: Prompt, length: int) -> np.ndarray:
    """Return a number for each position [T] that identifies its latent; -1 for tokens."""
    slots = prompt.slots[0, :length].astype(np.int64)
    if not prompt.blocks:
        return slots
    size = len(prompt.blocks[0])
    addresses = np.array([id(block) for block in prompt.blocks])
    return np.where(slots >= 0, addresses[slots // size] * size + slots % size, -1)


def without_first(prompt: Prompt, count: int) -> Prompt:
    """Return a one-row prompt without its first `count` positions."""
    tokens, slots = prompt.tokens[:, count:], prompt.slots[:, count:]
    return Prompt(tokens, slots, prompt.lengths - count, prompt.blocks)


def extended(prompt: Prompt, tokens: np.ndarray) -> Prompt:
    """Return a one-row prompt with tokens [1 T] appended."""
    slots = np.concatenate([prompt.slots, np.full_like(tokens, -1)], axis=1)
    joined = np.concatenate([prompt.tokens, tokens], axis=1)
    return Prompt(joined, slots, prompt.lengths + tokens.shape[1], prompt.blocks)


def split_content(content: Any, tokenizer: Tokenizer) -> Any:
    """Split a message's content into a list of parts if it is more than plain text.

    A string with memory tags, latents, and a sequence become lists; other content is returned as
    it is.
    """
    if isinstance(content, str):
        parts = parse_context_tags(content, tokenizer)
        return content if all(isinstance(part, str) for part in parts) else parts
    if isinstance(content, Latents):
        return [content]
    return list(content) if isinstance(content, Sequence) else content


def split_parts(parts: Any) -> list[Any]:
    """List the parts of a prompt that is a text, latents, or a sequence of both."""
    return [parts] if isinstance(parts, (str, bytes, Latents)) else list(parts)
