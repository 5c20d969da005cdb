"""Questions in a view, as records that the decoder reads."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lclm_jax.data.chat import PromptEnd
from lclm_jax.data.records import CONTEXT_TAGS, Context, Plain
from lclm_jax.evaluation.chunks import choose_chunks
from lclm_jax.evaluation.questions import Passage, Question
from lclm_jax.evaluation.views import View, cut_tokens
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.inference.latents import Latents
from lclm_jax.inference.rendering import render_chat, render_parts
from lclm_jax.inference.retrieval import Range, find_latents

Compress = Callable[[str], Latents | Context]


def render_question(
    question: Question,
    view: View,
    model: LanguageModel,
    compress: Compress,
    end: PromptEnd = PromptEnd(),
) -> list[Any]:
    """Return the prompt of a question as a record of spans and latents, with this end.

    A tokenizer that begins every text with a token, as Llama's does, begins the prompt with it.
    `compress` turns the text of a passage into latents, or into a context to compress later.
    Raises TextError for a malformed message.
    """

    reader = _read_chunks if view.raw_chunks else _read_passage
    chunks = iter(_choose_chunks(question, view, model))

    def read(parts: Sequence[str | Passage]) -> list[Any]:
        contents = [
            [part]
            if isinstance(part, str)
            else reader(part.text, next(chunks), view, model, compress)
            for part in parts
        ]
        return join_text([content for group in contents for content in group])

    tokenizer = model.tokenizer
    messages = [{**message, "content": read(message["content"])} for message in question.messages]
    if question.is_chat:
        end = replace(end, continued=messages[-1]["role"] == "assistant")
        record = render_chat(messages, tokenizer, end=end)
    else:
        parts = [part for message in messages for part in message["content"]]
        spans = [_as_span(part) for part in end_parts(join_text(parts), end)]
        record = render_parts(spans, tokenizer)

    start = tokenizer.text_start
    first = record[0].tokens[: len(start)] if record and isinstance(record[0], Plain) else []
    return record if np.array_equal(first, start) else [Plain(start), *record]


def render_continuation(
    question: Question, continuation: str, view: View, model: LanguageModel, compress: Compress
) -> list[Any]:
    """Return a question and its answer as a record in which only tokens of the answer are trained.

    They are split as by the harness' own models: both texts are encoded as one, and what follows
    the tokens of the prompt alone, without white space at its end, is the answer.
    """
    prompt = render_question(question, view, model, compress, PromptEnd(stripped=True))
    whole = render_question(question, view, model, compress, PromptEnd(text=continuation))
    length, whole_length = (
        sum(len(span.tokens) for span in record if isinstance(span, Plain))
        for record in (prompt, whole)
    )
    return train_last(whole, max(whole_length - length, 1))


def train_last(record: Sequence[Any], count: int) -> list[Any]:
    """Return a record in which only the last `count` tokens are trained, which are text."""
    first = len(record)
    while first > 0 and isinstance(record[first - 1], Plain):
        first -= 1
    before = [replace(x, trained=False) if isinstance(x, Plain) else x for x in record[:first]]
    tokens = np.concatenate([span.tokens for span in record[first:]])
    pieces = [Plain(tokens[:-count], False), Plain(tokens[-count:], True)]
    return [*before, *(span for span in pieces if len(span.tokens))]


def end_parts(parts: Sequence[Any], end: PromptEnd) -> list[Any]:
    """Return the parts of a completion with an end."""
    last = parts[-1] if parts and isinstance(parts[-1], str) else ""
    others = parts[:-1] if last else parts
    return [*others, text] if (text := end.apply(last)) else list(others)


def _choose_chunks(question: Question, view: View, model: LanguageModel) -> list[list[Range]]:
    """Return the characters of each passage that stay text."""
    if not view.raw_chunks or view.chunk_tokens is None:
        return [[] for _ in question.passages]
    return choose_chunks(question, view.raw_chunks, view.chunk_tokens, model.tokenizer)


def _read_passage(
    text: str, _: Sequence[Range], view: View, model: LanguageModel, compress: Compress
) -> list[str | np.ndarray | Latents | Context]:
    """Return the parts of a message that a passage becomes in a view without chunks as text."""
    if view.name == "text":
        return [text]
    if view.name == "nothing" or not text:
        return []
    if view.name == "latents":
        return [compress(text)]
    return [cut_tokens(model.tokenizer.encode(text), view, model)]


def _read_chunks(
    text: str, chunks: Sequence[Range], view: View, model: LanguageModel, compress: Compress
) -> list[str | np.ndarray | Latents | Context]:
    """Return the parts of a message that a passage with chunks as text becomes in a view.

    Chunks and latents of the rest follow each other in the order of the text. A latent stands for
    several tokens: the first after a chunk may begin before the end of a chunk.
    """
    if view.name == "nothing":
        return [f"{text[start:stop]}\n" for start, stop in chunks]
    if not text:
        return []
    is_rest = np.ones(len(text), bool)
    for start, stop in chunks:
        is_rest[start:stop] = False

    if view.name == "first":
        tokens = model.tokenizer.encode(text)
        offsets = model.find_latent_starts(text, view.ratio).offsets(len(text))
        ranges = find_latents(is_rest, offsets)
        latents = sum(stop - start + CONTEXT_TAGS for start, stop in ranges)
        texts = model.tokenizer.encode_batch([text[start:stop] for start, stop in chunks])
        return [cut_tokens(tokens, view, model, latents + sum(map(len, texts)))]

    latents = compress(text)
    assert isinstance(latents, Latents)  # a context has no parts
    offsets = latents.offsets
    parts: list[tuple[int, str | Latents]] = [(start, text[start:stop]) for start, stop in chunks]
    parts += [
        (int(offsets[start, 0]), latents[start:stop])
        for start, stop in find_latents(is_rest, offsets)
    ]
    return [part for _, part in sorted(parts, key=lambda item: item[0])]


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
