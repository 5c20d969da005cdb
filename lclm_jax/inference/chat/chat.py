"""A chat of any length within a budget of positions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lclm_jax.config import ConfigError
from lclm_jax.config.settings import Size, parse
from lclm_jax.data.chat import Message
from lclm_jax.errors import TextError
from lclm_jax.inference.answers import Answer, Answering
from lclm_jax.inference.chat.history import History
from lclm_jax.inference.chat.policy import Policy, compress_oldest
from lclm_jax.inference.chat.turn import Turn
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.inference.latents import Latents
from lclm_jax.inference.prefixes import PrefixCache
from lclm_jax.inference.prompts import CHUNKS
from lclm_jax.inference.rendering import PromptRecord
from lclm_jax.inference.sampling import GREEDY, Sampling

PADDING = CHUNKS[0]  # positions of the cache that the padding of a prompt's last chunk may take
HEADROOM = 4  # where messages are compressed, this part of the budget is freed at once
LEAST_BUDGET = 2 * PADDING


@dataclass(frozen=True)
class Usage:
    """Positions of a chat's prompt, and the messages that are latents in it.

    Attributes:
        positions: of the last prompt: tokens and latents.
        budget: most positions that a prompt with its answer may take.
        plain, compressed, forgotten: numbers of messages.
        tokens: of all messages that were compressed.
        latents: that stand for them.
    """

    positions: int
    budget: int
    plain: int
    compressed: int
    forgotten: int
    tokens: int
    latents: int

    def __str__(self) -> str:
        text = f"{self.positions} of {self.budget} positions"
        if self.compressed:
            text += (
                f"; {self.compressed} messages of {self.tokens} tokens as {self.latents} latents"
            )
        return text + (f"; {self.forgotten} messages forgotten" if self.forgotten else "")


class Chat:
    """A chat of any length, whose prompts take at most `budget` positions with their answers.

        chat = lclm_jax.Chat(model, budget=8192)
        chat.say("...")

    Before a prompt exceeds the budget, older messages become latents, as `policy` decides; the
    system message and the last turns stay plain. A message is compressed once. The KV cache has
    `budget` positions and is read on from turn to turn. A decoder of fewer positions limits the
    budget. `messages` keeps every word.

    `tools` and `settings` go to the chat template, as in `LanguageModel.chat`; `ratio` is that of
    the latents, `max_tokens` that of an answer. `last` is the last Answer; of one whose thoughts
    were compressed, the part after them.

    Raises ConfigError for a budget that is too small for an answer.
    """

    def __init__(
        self,
        model: LanguageModel,
        budget: int = 8192,
        system: str | None = None,
        policy: Policy = compress_oldest,
        max_tokens: int = 256,
        ratio: int | None = None,
        sampling: Sampling = GREEDY,
        tools: Sequence[Any] = (),
        settings: Mapping[str, Any] | None = None,
    ):
        self.model, self.policy, self.sampling = model, policy, sampling
        self.tools, self.settings = tools, settings
        self.max_tokens = parse(Size, max_tokens, "max_tokens")
        self.budget = min(parse(Size, budget, "budget"), model.config.decoder.max_positions)
        if self.budget < LEAST_BUDGET + self.max_tokens:
            raise ConfigError(
                f"expected a budget of at least {LEAST_BUDGET + self.max_tokens} positions for "
                f"answers of {self.max_tokens} tokens, got {self.budget}; raise it, or lower "
                "max_tokens"
            )
        self.history = History(model, ratio)
        self._prefixes = PrefixCache(budget=1, length=self.budget)  # bytes: only the newest fits
        self._positions, self._answering = 0, False
        self.last: Answer | None = None
        if system:
            self.history.add({"role": "system", "content": system})

    @property
    def messages(self) -> list[Message]:
        """All messages; text that an answer compressed while it was written is text again."""
        return [entry.in_words() for entry in self.history.entries]

    @property
    def usage(self) -> Usage:
        """Positions of the last prompt, and the messages that are latents in it."""
        entries = self.history.entries
        levels = [entry.level for entry in entries]
        compressed = [entry for entry in entries if entry.level == "latents"]
        return Usage(
            self._positions,
            self.budget,
            levels.count("plain"),
            len(compressed),
            levels.count("forgotten"),
            sum(entry.tokens for entry in compressed),
            sum(entry.count for entry in compressed),
        )

    def say(
        self,
        content: str | Sequence[str | Latents],
        seed: int = 0,
        thought_tokens: int | None = None,
    ) -> str:
        """Add a turn of the user and return the assistant's answer.

        With `thought_tokens`, an answer is compressed while it is written, until its thoughts end
        (`</think>`): each time it has that many tokens they become latents, and the model writes on
        after them.

        Raises TextError if the prompt exceeds the budget though all older messages are latents;
        otherwise the errors of `LanguageModel.chat`. After an error the turn is not in the chat.
        """
        return "".join(self.stream(content, seed, thought_tokens))

    def stream(
        self,
        content: str | Sequence[str | Latents],
        seed: int = 0,
        thought_tokens: int | None = None,
    ) -> Iterator[str]:
        """Yield the text of `say` piece by piece; a reader that leaves ends the answer."""
        return self._answer({"role": "user", "content": content}, seed, thought_tokens)

    def add(self, message: Message):
        """Add a message without an answer, such as the result of a tool; see `reply`."""
        self.history.add(message)

    def reply(self, seed: int = 0, thought_tokens: int | None = None) -> str:
        """Return the assistant's answer to the messages so far, after results of tools."""
        return "".join(self._answer(None, seed, thought_tokens))

    def _answer(
        self, message: Message | None, seed: int, thought_tokens: int | None
    ) -> Iterator[str]:
        """Add a message, if there is one, and yield the answer; an error takes both back."""
        if self._answering:
            raise TextError("an answer of this chat is still being written; read or close it first")
        levels, positions = self.history.snapshot(), self._positions
        self._answering = True
        try:
            if message is not None:
                self.history.add(message)
            limits = (self.max_tokens, seed, thought_tokens, self.history.ratio)
            turn = Turn(self.model, self._fit(), self._start, *limits)
        except BaseException:
            self.history.restore(levels)
            self._positions, self._answering = positions, False
            raise
        try:
            yield from turn.pieces()
        except (GeneratorExit, KeyboardInterrupt):  # the reader has left
            self._finish(turn)
            raise
        except BaseException:
            self.history.restore(levels)
            self._positions = positions
            raise
        else:
            self._finish(turn)
        finally:
            self._answering = False

    def _finish(self, turn: Turn):
        """Add what the assistant wrote."""
        self.last = turn.answer
        self.history.add({"role": "assistant", "content": turn.content()})

    def _start(self, record: PromptRecord, max_tokens: int, seed: int) -> Answering:
        prompt = self.model.read([record])
        inputs = (prompt, max_tokens, self.sampling, seed, self._prefixes)
        return Answering(self.model, *inputs)

    def _fit(self) -> PromptRecord:
        """Return the prompt of the messages so far, after compressing what the budget demands."""
        limit = self.budget - PADDING - self.max_tokens
        while True:
            record = self.model.render(self.history.messages(), self.tools, self.settings)
            self._positions = int(self.model.read([record]).lengths[0])
            excess = self._positions - limit
            if excess <= 0:
                return record
            sizes = self.history.sizes
            levels = self.policy(sizes, excess + self.budget // HEADROOM)
            if levels is not None and list(levels) == [size.level for size in sizes]:
                raise TextError(
                    f"the messages that stay plain take {self._positions} positions; with "
                    f"{self.max_tokens} for an answer and {PADDING} for padding that is more than "
                    f"the budget of {self.budget}; raise the budget, or compress parts of the last "
                    "message"
                )
            self.history.set_levels(levels)
