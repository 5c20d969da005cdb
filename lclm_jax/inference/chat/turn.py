"""An assistant's turn while it is written; long thoughts become latents on the way."""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import numpy as np

from lclm_jax.config.settings import Range, parse
from lclm_jax.data.chat import split_reasoning
from lclm_jax.data.records import Plain
from lclm_jax.inference.answers import Answer, Answering, Stream
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.inference.latents import Latents
from lclm_jax.inference.rendering import PromptRecord
from lclm_jax.inference.text_stream import longest_beginning

THOUGHTS_END = "</think>"
TAGS = 2  # positions around latents
LeastThoughts = Annotated[int, Range(least=16)]  # fewer tokens are hardly worth their tags

# `start(record, max_tokens, seed)` begins the answer to a record.
Start = Callable[[PromptRecord, int, int], Answering]


class Turn:
    """A turn of the assistant, written as `pieces` are read.

    With `thought_tokens`, thoughts of that many tokens become latents inside the turn, and the
    model writes on after them; it stops doing so once the thoughts have ended. Nothing is read
    twice but the thoughts that follow their latents.
    """

    def __init__(
        self,
        model: LanguageModel,
        record: PromptRecord,
        start: Start,
        max_tokens: int,
        seed: int,
        thought_tokens: int | None = None,
        ratio: int | None = None,
    ):
        self._model, self._record, self._start = model, record, start
        self._left, self._seed = max_tokens, seed
        self._thought_tokens, self._ratio = thought_tokens, ratio
        if thought_tokens is not None:
            self._thought_tokens = parse(LeastThoughts, thought_tokens, "thought_tokens")
        self._thoughts: list[Latents | str] = []
        self._text = ""  # after the last latents
        self._stream = Stream(start(record, max_tokens, seed))
        self._cancelled = False

    @property
    def answer(self) -> Answer | None:
        """The answer after the last latents, once it has ended."""
        return self._stream.answer

    def pieces(self) -> Iterator[str]:
        """Yield the text of the turn; a reader that leaves ends it."""
        try:
            while True:
                yield from self._read_stream()
                if not self._goes_on():
                    return
                self._compress_thoughts()
        finally:
            self._cancelled = True
            self._stream.cancel()
            self._text += "".join(self._stream)

    def _read_stream(self) -> Iterator[str]:
        for piece in self._stream:
            self._text += piece
            yield piece
            if self._is_long_thought():
                self._stream.cancel()

    def _is_long_thought(self) -> bool:
        if self._thought_tokens is None or THOUGHTS_END in self._text:
            return False
        ends_soon = longest_beginning(self._text, [THOUGHTS_END]) > 0
        return self._stream.count >= self._thought_tokens and not ends_soon

    def _goes_on(self) -> bool:
        """Return whether the stream ended only because its thoughts are to be compressed."""
        answer = self._stream.answer
        assert answer is not None
        self._left -= len(answer.tokens)
        return answer.finish == "cancelled" and not self._cancelled and self._left > 0

    def _compress_thoughts(self):
        answer = self._stream.answer
        assert answer is not None
        latents = self._model.compress(self._text, self._ratio)
        # Text of bytes that are no characters may have more tokens than were written.
        is_shorter = len(latents) + TAGS < len(answer.tokens)
        self._thoughts.append(latents if is_shorter else self._text)
        written = latents if is_shorter else Plain(np.array(answer.tokens, np.int32))
        self._record = [*self._record, written]
        self._text = ""
        seed = self._seed + len(self._thoughts)
        self._stream = Stream(self._start(self._record, self._left, seed))

    def content(self) -> Sequence[Any]:
        """Return the content of the message: text, or latents of the thoughts and the answer."""
        if not self._thoughts:
            return split_reasoning(self._text)
        thoughts, end, answer = self._text.partition(THOUGHTS_END)
        if not end:
            return [*self._thoughts, self._text]
        last = self._model.compress(thoughts + end, self._ratio)
        return [*self._thoughts, last, answer.lstrip("\n")]
