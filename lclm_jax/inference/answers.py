"""Answers to prompts: all at once, or as a stream of text."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from lclm_jax.config import ConfigError, ModelConfig
from lclm_jax.config.settings import Count, parse
from lclm_jax.data.text.tokenizer import TextError
from lclm_jax.inference.generation import DECODE_STEPS, ROOM, Generation, count_before_stop
from lclm_jax.inference.prefixes import PrefixCache, prefill_rest
from lclm_jax.inference.prompts import Prompt, extended
from lclm_jax.inference.sampling import Sampling
from lclm_jax.inference.text_stream import TextStream

if TYPE_CHECKING:
    from lclm_jax.inference.language_model import LanguageModel

Seed = int | Sequence[int]  # of all rows, or one for each


class PositionsError(TextError):
    """A prompt that, with its answer, is longer than the decoder's positions."""


@dataclass(frozen=True)
class Answer:
    """The answer to one prompt.

    Attributes:
        text: up to the stop token or the stop string.
        tokens: without a stop token; up to the token that completes a stop string.
        logprobs: natural logarithm of each token's probability. It is the model's own, before
            temperature, penalties and cuts.
        finish: the reason for its end: a stop token or a stop string, `max_tokens`, or
            `Stream.cancel`.
        positions: length of the prompt: tokens and latents.
        positions_read: how many of these were read now, not found in the cache of an earlier
            prompt.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Literal["stop", "length", "cancelled"]
    positions: int
    positions_read: int


class Answering:
    """The answers to the rows of a prompt, under way.

    Reading starts at once, after what `prefixes` have of the prompt, by default those of the
    model. Raises TextError for a prompt that is too long, ConfigError for a wrong
    `max_tokens` or `seed`, and NotFiniteError if logits are NaN or infinite.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompt: Prompt,
        max_tokens: int,
        sampling: Sampling,
        seed: Seed,
        prefixes: PrefixCache | None = None,
    ):
        max_tokens = parse(Count, max_tokens, "max_tokens")
        seeds = check_seeds(seed, len(prompt.lengths))
        check_length(int(prompt.lengths.max()), max_tokens, model.config)
        self._model, self._prompt, self._weights = model, prompt, model.weights
        self._prefixes = model.prefixes if prefixes is None else prefixes
        room = max_tokens if self._prefixes.length else max(max_tokens, ROOM)
        self._streams = [TextStream(model.tokenizer, sampling.stop) for _ in prompt.lengths]
        self._texts = ["" for _ in prompt.lengths]
        self._taken = 0  # tokens of every row that its stream has
        with model.queue.turn():
            logits, cache, self._positions_read = prefill_rest(
                self._prefixes, self._weights, prompt, model.config, room
            )
            inputs = (logits, prompt.lengths, cache, model.config, max_tokens, model.stops)
            self._generation = Generation(self._weights, *inputs, seeds, sampling)
        self.new_texts = self._take_tokens()

    @property
    def finished(self) -> bool:
        """Return whether every answer is complete."""
        return self._generation.finished

    @property
    def count(self) -> int:
        """Tokens of every row decoded so far."""
        return self._taken

    def advance(self, count: int = DECODE_STEPS):
        """Decode up to `count` more tokens of every row; `new_texts` is then their text."""
        with self._model.queue.turn():
            self._generation.advance(count)
            self.new_texts = self._take_tokens()

    def _take_tokens(self) -> list[str]:
        """Return the new text of every row, and end the rows that have a stop string."""
        tokens = self._generation.tokens
        counts = count_before_stop(tokens, self._model.stops)
        texts = []
        for row, stream in enumerate(self._streams):
            new = tokens[row, self._taken : counts[row]].tolist()
            texts.append("".join(map(stream.add, new)))
        self._taken = tokens.shape[1]
        self._texts = [known + text for known, text in zip(self._texts, texts, strict=True)]
        if any(stream.stopped for stream in self._streams):
            self._generation.end_rows(np.array([stream.stopped for stream in self._streams]))
        return texts

    def finish(self) -> list[Answer]:
        """Return the answers as far as they are decoded, and keep the cache of a single row."""
        self.new_texts = [stream.finish() for stream in self._streams]
        texts = [known + new for known, new in zip(self._texts, self.new_texts, strict=True)]
        if len(texts) == 1:
            self._keep_cache()
        counts = count_before_stop(self._generation.tokens, self._model.stops)
        return [self._answer(row, text, counts[row]) for row, text in enumerate(texts)]

    def _answer(self, row: int, text: str, before_stop: int) -> Answer:
        stream, generation = self._streams[row], self._generation
        count = min(stream.count, int(before_stop))
        has_stop = stream.stopped or before_stop < generation.tokens.shape[1]
        unfinished = "length" if generation.finished else "cancelled"
        return Answer(
            text,
            tuple(generation.tokens[row, :count].tolist()),
            tuple(generation.logprobs[row, :count].tolist()),
            "stop" if has_stop else unfinished,
            int(self._prompt.lengths[row]),
            int(self._positions_read[row]),
        )

    def _keep_cache(self):
        """Keep the cache for prompts that begin as this one with its answer."""
        cache = self._generation.cache
        with self._model.queue.turn():
            written = int(cache.end) - int(self._prompt.lengths[0])
            read = extended(self._prompt, self._generation.tokens[:, :written])
            if self._weights is self._model.weights:  # not replaced meanwhile
                self._prefixes.put(read, cache, self._weights)


class Stream(Iterator[str]):
    """An iterator over the text of an answer, piece by piece, as its tokens are decoded.

    A piece has whole characters. All pieces together are the text of the answer that is generated
    without streaming. Leave the loop or call `cancel` to end the answer early. `answer` is the
    Answer so far once the stream has ended.
    """

    def __init__(self, answering: Answering):
        self._answering = answering
        self._lock = threading.Lock()
        self._cancelled = False
        self.answer: Answer | None = None

    @property
    def count(self) -> int:
        """Tokens decoded so far."""
        return self._answering.count

    def __next__(self) -> str:
        """Return the next piece of text, which is not empty."""
        with self._lock:
            return self._next()

    def _next(self) -> str:
        piece = self._answering.new_texts[0] if self.answer is None else ""
        while not piece:
            if self.answer is not None:
                raise StopIteration
            piece = self._decode_more()
        self._answering.new_texts = [""]
        return piece

    def _decode_more(self) -> str:
        if self._answering.finished or self._cancelled:
            (self.answer,) = self._answering.finish()
        else:
            self._answering.advance(1)
        return self._answering.new_texts[0]

    def cancel(self):
        """End the answer after the token being decoded; any thread may call this."""
        self._cancelled = True


def check_seeds(seed: Seed, rows: int) -> list[int]:
    """Return a seed for each row; raises ConfigError for a wrong one, or another number of them."""
    listed = seed.tolist() if isinstance(seed, np.ndarray) else seed
    seeds = listed if isinstance(listed, list | tuple) else [listed] * rows
    if len(seeds) != rows:
        raise ConfigError(f"expected a seed or one for each of {rows} prompts, got {len(seeds)}")
    return [parse(int, number, "seed") for number in seeds]


def check_length(length: int, max_tokens: int, config: ModelConfig):
    """Raise PositionsError where a prompt and its answer do not fit the decoder's positions."""
    limit = config.decoder.max_positions
    if length + max_tokens > limit:
        raise PositionsError(
            f"prompt and answer take up to {limit} positions, got {length} + {max_tokens}; "
            "compress more of the prompt"
        )
