"""Messages, text and latents as the positions of a prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lclm_jax.config import ModelConfig
from lclm_jax.data.chat import Message, PromptEnd, build_chat_record, parse_context_tags
from lclm_jax.data.records import Context, Given, Plain, Span, lay_out
from lclm_jax.data.text.tokenizer import TextError, Tokenizer
from lclm_jax.inference.latents import BlockSlice, Latents, LatentsError
from lclm_jax.inference.prompts import Prompt
from lclm_jax.inference.token_ids import check_ids

# A record whose contexts are latents already, or not yet.
PromptRecord = Sequence[Span | Latents]


def render_chat(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    tools: Sequence[Any] = (),
    settings: Mapping[str, Any] | None = None,
    end: PromptEnd = PromptEnd(),
) -> list[Span | Latents]:
    """Render a chat, up to where the assistant goes on, as a record of spans and latents.

    `tools` are JSON signatures; `settings` are further variables of the chat template. Without an
    `end`, the assistant begins a turn. Raises TextError for a malformed message.
    """
    latents: dict[int, Latents] = {}  # by the id of their placeholder
    placeholders: list[Given] = []  # kept alive, so that no id is used twice

    def replace_latents(part: Any) -> Any:
        if not isinstance(part, Latents):
            return part
        placeholder = Given(len(part))
        latents[id(placeholder)] = part
        placeholders.append(placeholder)
        return placeholder

    prepared = []
    for message in messages:
        parts = split_content(message.get("content"), tokenizer)
        if isinstance(parts, list):
            message = {**message, "content": [replace_latents(part) for part in parts]}
        prepared.append(message)
    extra = {"tools": tools} if tools else {}
    record = build_chat_record(
        prepared, tokenizer, generate=True, end=end, **extra, **(settings or {})
    )
    return [latents.get(id(span), span) for span in record]


def render_parts(parts: Any, tokenizer: Tokenizer) -> list[Span | Latents]:
    """Return text and latents, without a chat template, as a record.

    Raises TextError for parts of another type.
    """
    record: list[Span | Latents] = []
    for part in split_parts(parts):
        if not isinstance(part, (str, Latents, Context, Plain)):
            raise TextError(f"expected text or latents to continue, got {type(part).__name__}")
        record.append(Plain(tokenizer.encode(part)) if isinstance(part, str) else part)
    return record


def lay_out_prompt(
    records: Sequence[Sequence[Any]], config: ModelConfig, tokenizer: Tokenizer
) -> Prompt:
    """Return records, whose contexts are latents, as one prompt with a row for each.

    Slots are numbered through the blocks of all records.

    Raises TextError for an empty batch or record and for ids that the decoder does not have, and
    LatentsError for latents of another width than the decoder's.
    """
    if not records:
        raise TextError("expected at least one prompt, got none")
    rows = [_lay_out(record, config, tokenizer) for record in records]

    blocks = {id(part.block): part.block for _, slices in rows for part in slices}
    indices = {key: index for index, key in enumerate(blocks)}
    size = config.compression.latents_per_window
    lengths = np.array([len(tokens) for (tokens, _), _ in rows], np.int32)
    tokens = np.zeros((len(rows), lengths.max()), np.int32)
    slots = np.full_like(tokens, -1)
    for row, ((row_tokens, row_slots), slices) in enumerate(rows):
        latent_rows = [
            indices[id(part.block)] * size + part.first + np.arange(part.count) for part in slices
        ]
        # Slot -1 of an ordinary token picks the -1 at the end of the table.
        table = np.concatenate([*latent_rows, [-1]]).astype(np.int32)
        tokens[row, : len(row_tokens)] = row_tokens
        slots[row, : len(row_tokens)] = table[row_slots]
    return Prompt(tokens, slots, lengths, list(blocks.values()))


def _lay_out(
    record: Sequence[Any], config: ModelConfig, tokenizer: Tokenizer
) -> tuple[tuple[np.ndarray, np.ndarray], list[BlockSlice]]:
    """Return a record's tokens and slots [T], and the slices of latents its slots index."""
    width, size = config.decoder.width, config.compression.latents_per_window
    slices: list[BlockSlice] = []
    spans = []
    for part in record:
        if isinstance(part, Latents):
            if part.width != width:
                shape = (len(part), part.width)
                raise LatentsError(f"latents of width {width} fit this model, got {shape}")
            slices += part.slices(size, config.dtype)
            part = Given(len(part))
        spans.append(part)

    example = lay_out(spans, config, tokenizer.memory)
    if not len(example):
        raise TextError("expected a prompt, got an empty one")
    check_ids(example.tokens, config.decoder.vocab)
    return (example.tokens, example.slots), slices


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
