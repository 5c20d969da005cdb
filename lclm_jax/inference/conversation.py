"""A chat that keeps the keys and values of what was read, so that each turn reads only what is
new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """A chat that keeps the keys and values of what was read.

    >>> conversation = model.conversation()
    >>> conversation.ask([memory, "What broke?"])
    >>> conversation.ask("Since when?")  # reads these words only
    """

    def __init__(
        self,
        model: LanguageModel,
        tools: Sequence[Any] = (),
        settings: Mapping[str, Any] | None = None,
    ):
        self.model, self.tools, self.settings = model, tools, settings
        self.messages: list[Message] = []
        self._read: Prompt | None = None  # what the cache holds
        self._cache: Cache | None = None
        self._weights: Params | None = None  # the model's when it was read

    def ask(
        self,
        content: str | Latents | Sequence[str | Latents],
        max_tokens: int = 64,
        sampling: Sampling = GREEDY,
        seed: int = 0,
    ) -> str:
        """The assistant's answer to one more turn of the user, as `LanguageModel.chat` gives it."""
        model = self.model
        messages = [*self.messages, {"role": "user", "content": self._kept(content)}]
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

    def _kept(self, content: str | Latents | Sequence[str | Latents]) -> str | list[Any]:
        """A content as parts in which contexts are latents, so that they are compressed once."""
        model = self.model
        parts = split_content(content, model.tokenizer)
        if isinstance(parts, str):
            return parts
        return [
            model.compress_tokens(part.tokens, part.ratio) if isinstance(part, Context) else part
            for part in parts
        ]

    def _prefill(self, prompt: Prompt, room: int):
        """`generate.prefill` of what the cache does not have."""
        model, cache = self.model, self._cache
        self._cache = None  # a chunk uses it up
        if cache is not None and self._read is not None and self._weights is model.weights:
            shared = min(shared_length(self._read, prompt), int(prompt.lengths[0]) - 1)
            rest = without_first(prompt, shared)
            needed = positions_needed(plan_chunks(rest, model.config), room)
            if shared + needed <= cache.length:
                cache = cache.replace(end=replicate(np.int32(shared)))
                return prefill(model.weights, rest, model.config, room, cache, shared)
        return prefill(model.weights, prompt, model.config, room)


def shared_length(one: Prompt, other: Prompt) -> int:
    """Count the leading positions, tokens and latents, that two prompts of one row share."""
    length = min(int(one.lengths[0]), int(other.lengths[0]))
    same = one.tokens[0, :length] == other.tokens[0, :length]
    same &= _sources(one, length) == _sources(other, length)
    return length if same.all() else int(np.argmin(same))


def _sources(prompt: Prompt, length: int) -> np.ndarray:
    """Identifies the latent of each position [T] by one number; -1 for tokens."""
    slots = prompt.slots[0, :length].astype(np.int64)
    if not prompt.blocks:
        return slots
    size = len(prompt.blocks[0])
    addresses = np.array([id(block) for block in prompt.blocks])
    return np.where(slots >= 0, addresses[slots // size] * size + slots % size, -1)


def without_first(prompt: Prompt, count: int) -> Prompt:
    """A prompt of one row without its first positions."""
    tokens, slots = prompt.tokens[:, count:], prompt.slots[:, count:]
    return Prompt(tokens, slots, prompt.lengths - count, prompt.blocks)


def extended(prompt: Prompt, tokens: np.ndarray) -> Prompt:
    """A prompt of one row with tokens [1 n] after it."""
    slots = np.concatenate([prompt.slots, np.full_like(tokens, -1)], axis=1)
    joined = np.concatenate([prompt.tokens, tokens], axis=1)
    return Prompt(joined, slots, prompt.lengths + tokens.shape[1], prompt.blocks)


def split_content(content: Any, tokenizer: Tokenizer) -> Any:
    """A content as a list of parts where it has any but text: latents, or memory tags in text."""
    if isinstance(content, str):
        parts = parse_context_tags(content, tokenizer)
        return content if all(isinstance(part, str) for part in parts) else parts
    if isinstance(content, Latents):
        return [content]
    return list(content) if isinstance(content, Sequence) else content


def split_parts(parts: Any) -> list[Any]:
    """Lists the parts of a prompt that is one text, latents, or a list of both."""
    return [parts] if isinstance(parts, (str, bytes, Latents)) else list(parts)
