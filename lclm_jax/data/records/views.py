"""Views of a record: the same spans with their contexts read in another way."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from lclm_jax.config import ModelConfig
from lclm_jax.data.records.layout import context_positions
from lclm_jax.data.records.spans import Context, Plain, Span

View = Callable[[Sequence[Span]], Sequence[Span]]


def as_plain_text(record: Sequence[Span]) -> list[Span]:
    """Return the record with every context as plain text that carries no loss."""
    return [Plain(span.tokens) if isinstance(span, Context) else span for span in record]


def as_trained_text(record: Sequence[Span]) -> list[Span]:
    """Return the record as plain text with loss on every token."""
    text = as_plain_text(record)
    return [replace(span, trained=True) if isinstance(span, Plain) else span for span in text]


def at_ratio(record: Sequence[Span], ratio: int) -> list[Span]:
    """Return the record with every context at one compression ratio."""
    return [replace(span, ratio=ratio) if isinstance(span, Context) else span for span in record]


def without_contexts(record: Sequence[Span]) -> list[Span]:
    """Return the record with every context left out."""
    return [span for span in record if not isinstance(span, Context)]


def first_tokens(record: Sequence[Span], config: ModelConfig) -> list[Span]:
    """Return the record with every context cut to the decoder positions that compressing it takes.

    Those are its latents and two tags; as many of its first tokens are plain text without loss.
    """
    spans: list[Span] = []
    for span in record:
        if isinstance(span, Context):
            count = context_positions(len(span.tokens), config, span.ratio)
            span = Plain(span.tokens[:count])
        spans.append(span)
    return spans


def train_first_span(record: Sequence[Span]) -> list[Span]:
    """Return the record with loss on its first trained span alone."""
    spans: list[Span] = []
    has_trained = False
    for span in record:
        trained = isinstance(span, Plain) and span.trained
        spans.append(replace(span, trained=False) if trained and has_trained else span)
        has_trained = has_trained or trained
    return spans


# The views a model is scored in: contexts as latents, as full text, and left out.
VIEWS: Mapping[str, View] = {
    "latents": lambda record: record,
    "text": as_plain_text,
    "nothing": without_contexts,
}
