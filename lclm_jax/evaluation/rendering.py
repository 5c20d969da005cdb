"""Questions in a view, as records that the decoder reads."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lclm_jax.data.records import Context, Plain, Span
from lclm_jax.evaluation.questions import Passage, Question
from lclm_jax.evaluation.views import View, cut_tokens
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.inference.latents import Latents
from lclm_jax.inference.rendering import render_parts

Compress = Callable[[str], Latents | Context]


def render_question(
    question: Question, view: View, model: LanguageModel, compress: Compress
) -> list[Span | Latents]:
    """Return the prompt of a question as a record.

    `compress` turns the text of a passage into latents, or into a context to compress later.
    Raises TextError for a malformed message.
    """

    def read(parts: Sequence[str | Passage]) -> list[Any]:
        return join_text([_read_part(part, view, model, compress) for part in parts])

    messages = [{**message, "content": read(message["content"])} for message in question.messages]
    if not question.is_chat:
        parts = [part for message in messages for part in message["content"]]
        return render_parts([_as_span(part) for part in join_text(parts)], model.tokenizer)

    beginning: list[Span | Latents] = []
    if messages[-1]["role"] == "assistant":
        beginning = render_parts(messages.pop()["content"], model.tokenizer)
    return [*model.render(messages), *beginning]


def _read_part(
    part: str | Passage, view: View, model: LanguageModel, compress: Compress
) -> str | np.ndarray | Latents | Context:
    """Return a part of a message in a view: text, token ids, latents or a context."""
    if isinstance(part, str) or view.name == "text":
        return part if isinstance(part, str) else part.text
    if view.name == "nothing" or not part.text:
        return ""
    if view.name == "latents":
        return compress(part.text)
    return cut_tokens(model.tokenizer.encode(part.text), view, model)


def join_text(parts: Sequence[Any]) -> list[Any]:
    """Join texts that follow each other, so that they are tokenized as one, and drop empty ones."""
    joined: list[Any] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        elif not isinstance(part, str) or part:
            joined.append(part)
    return joined


def _as_span(part: Any) -> Any:
    return Plain(part) if isinstance(part, np.ndarray) else part
