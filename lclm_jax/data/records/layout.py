"""Records laid out as arrays, and their sizes known from lengths alone.

`lay_out` is the only way from a record to arrays: training, evaluation and generation all use it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lclm_jax.config import ModelConfig
from lclm_jax.data.records.spans import Context, Given, Plain, Span
from lclm_jax.data.records.windows import (
    ContextPiece,
    count_latents,
    resolve_ratio,
    split_windows,
    window_bounds,
)
from lclm_jax.data.text.tokenizer import MemoryTokens

CONTEXT_TAGS = 2  # the start and end tags around the slots of a context


@dataclass(frozen=True)
class Example:
    """A record as decoder arrays [n] and encoder pieces.

    Latents are numbered from 0 through all pieces.
    """

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    slots: np.ndarray
    pieces: list[ContextPiece] = field(default_factory=list)
    stream: int = 0

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class RecordSize:
    """The capacity a record takes in a packed row."""

    positions: int  # decoder positions
    pieces: tuple[tuple[int, int], ...]  # encoder positions and latents of every piece
    trained: int  # tokens that carry loss
    compressed: int  # tokens read as latents

    @property
    def encoder_positions(self) -> int:
        """The positions of all pieces."""
        return sum(length for length, _ in self.pieces)


def context_positions(length: int, config: ModelConfig, ratio: int | None = None) -> int:
    """Count the decoder positions of a context of `length` tokens: its latents and two tags."""
    return count_latents(length, config, ratio) + CONTEXT_TAGS


def measure(record: Sequence[Span], config: ModelConfig) -> RecordSize:
    """Return the size of what `lay_out` makes of a record; its tokens may be ranges."""
    positions = trained = compressed = 0
    pieces: list[tuple[int, int]] = []
    for span in record:
        if isinstance(span, Plain):
            # Nothing precedes the first position of an example, so nothing predicts it.
            unpredicted = positions == 0 and len(span.tokens) > 0
            trained += span.trained * (len(span.tokens) - unpredicted)
            positions += len(span.tokens)
        elif isinstance(span, Given):
            positions += span.count + CONTEXT_TAGS
        else:
            positions += context_positions(len(span.tokens), config, span.ratio)
            compressed += len(span.tokens)
            pieces += _piece_sizes(span, config)
    return RecordSize(positions, tuple(pieces), trained, compressed)


def _piece_sizes(context: Context, config: ModelConfig) -> list[tuple[int, int]]:
    """Return (encoder positions, latents) of every piece of a context."""
    ratio, sizes = resolve_ratio(context.ratio, config), []
    for bounds in window_bounds(len(context.tokens), config):
        latents = bounds.count_latents(ratio)
        has_markers = config.compression.pooling == "eos" and bounds.end > bounds.start
        markers = latents if has_markers else 0
        sizes.append((bounds.right - bounds.left + markers, latents))
    return sizes


def lay_out(
    record: Sequence[Span], config: ModelConfig, memory: MemoryTokens, stream: int = 0
) -> Example:
    """Return the arrays of a record: a context becomes start tag, one slot per latent, end tag.

    Position t predicts token t + 1, with weight 1 where that token is trained; tags and slots never
    are. With ratio 2, [Plain [5], Context [7 8 9], Plain [6] trained] becomes

        tokens  [ 5  <  *  *  >  6]      targets [<  *  *  >  6  0]
        slots   [-1 -1  0  1 -1 -1]      weights [0  0  0  0  1  0]
    """
    tokens, slots = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    trained, pieces, latents = [], [], 0
    for index, span in enumerate(record):
        if isinstance(span, Plain):
            tokens.append(np.asarray(span.tokens, np.int32))
            slots.append(np.full(len(span.tokens), -1))
            trained.append(np.full(len(span.tokens), span.trained))
            continue
        count = _count_slots(span, config)
        tokens.append(np.array([memory.start, *[memory.slot] * count, memory.end]))
        slots.append(np.array([-1, *range(latents, latents + count), -1]))
        trained.append(np.zeros(count + CONTEXT_TAGS, bool))
        latents += count
        if isinstance(span, Context):
            windows = split_windows(span, config, memory.marker)
            pieces += [replace(piece, context=index) for piece in windows]
    all_tokens = np.concatenate(tokens).astype(np.int32)
    next_trained = np.concatenate([*trained, [False]])[1:]
    return Example(
        tokens=all_tokens,
        targets=np.append(all_tokens, 0)[1:].astype(np.int32),
        weights=next_trained.astype(np.float32),
        slots=np.concatenate(slots).astype(np.int32),
        pieces=pieces,
        stream=stream,
    )


def _count_slots(span: Context | Given, config: ModelConfig) -> int:
    if isinstance(span, Given):
        return span.count
    return count_latents(len(span.tokens), config, span.ratio)
