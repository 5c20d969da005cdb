"""A record is a list of spans: text the decoder reads, context it reads as latents, latents it was handed.

`lay_out` turns a record into the arrays of one example; training, evaluation and generation all go through it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lclm_jax.config import ConfigError, ModelConfig
from lclm_jax.data.records.stretches import Tokens
from lclm_jax.data.text.tokenizer import MemoryTokens


@dataclass(frozen=True)
class Plain:
    """Tokens the decoder reads as they are; `trained` ones carry loss."""

    tokens: Tokens
    trained: bool = False


@dataclass(frozen=True)
class Context:
    """Tokens to be compressed, at the model's own ratio unless another of its ratios is named."""

    tokens: Tokens
    ratio: int | None = None


@dataclass(frozen=True)
class Given:
    """`count` slots for latents computed before."""

    count: int


Span = Plain | Context | Given


@dataclass(frozen=True)
class Piece:
    """One window of a context, with its neighbours and markers: what one encoder segment reads."""

    tokens: np.ndarray  # [w]
    groups: np.ndarray  # [w] latent of this piece each token is pooled into, or -1
    latents: int
    context: int = 0  # which of the example's contexts it is a piece of
    first: int = 0  # its first latent, counted through that context


@dataclass(frozen=True)
class Example:
    """One record as decoder arrays [n] and encoder pieces; latents are numbered from 0 through all pieces."""

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    slots: np.ndarray
    pieces: list[Piece] = field(default_factory=list)
    stream: int = 0

    def __len__(self) -> int:
        return len(self.tokens)


def resolve_ratio(ratio: int | None, config: ModelConfig) -> int:
    """The ratio a context is read at. Raises ConfigError for one the model is not made for."""
    known = config.compression.all_ratios
    if ratio is None:
        return known[0]
    if ratio not in known:
        raise ConfigError(
            f"this model compresses at ratio {', '.join(map(str, known))}, got ratio={ratio}; load one trained for {ratio}, "
            "or name it in compression.ratios"
        )
    return ratio


def count_latents(length: int, config: ModelConfig, ratio: int | None = None) -> int:
    """Latents of a context of `length` tokens: ceil(window / ratio) per window, one for an empty context.

    >>> ratio 4, window 32: 0 -> 1, 5 -> 2, 32 -> 8, 33 -> 9
    """
    ratio, window = resolve_ratio(ratio, config), config.compression.window
    full, rest = divmod(length, window)
    return max(1, full * (window // ratio) + -(-rest // ratio))


def window_bounds(length: int, config: ModelConfig) -> Iterator[tuple[int, int, int, int]]:
    """(first read, first own, last own, last read) of every window of a context; own tokens are pooled, the others only read."""
    window = config.compression.window
    for start in range(0, max(1, length), window):
        yield _bounds(start, length, config)


def _bounds(start: int, length: int, config: ModelConfig) -> tuple[int, int, int, int]:
    """The bounds of the window that starts here, in a context of so many tokens."""
    overlap, end = config.compression.overlap, min(start + config.compression.window, length)
    return (
        max(0, start - overlap),
        start,
        end,
        end if config.encoder.causal else min(length, end + overlap),
    )


def split_windows(context: Context, config: ModelConfig, marker: int = 0) -> list[Piece]:
    """Cuts a context every `window` tokens (checkpoint format, "Behaviour").

    Overlap tokens to the left (and right, when bidirectional) are read and not pooled; eos pooling pools `marker`
    tokens after them instead of the text. An empty context is one piece of no tokens and one zero latent.

    >>> ratio 2, window 4, tokens [7 8 9 5 6]: pieces [7 8 9 5] in groups [0 0 1 1] and [6] in group [0]
    """
    return list(cut_windows([np.asarray(context.tokens)], config, context.ratio, marker))


def cut_windows(
    parts: Iterable[np.ndarray], config: ModelConfig, ratio: int | None = None, marker: int = 0
) -> Iterator[Piece]:
    """`split_windows` of tokens that come in parts; yields a piece as soon as its tokens are there."""
    ratio, window = resolve_ratio(ratio, config), config.compression.window
    ahead = 0 if config.encoder.causal else config.compression.overlap
    parts, tokens, offset = iter(parts), np.zeros(0, np.int32), 0  # `offset`: tokens left behind
    start = first = 0
    while True:
        part = next(parts, None)
        if part is not None:
            tokens = np.concatenate([tokens, part])
        length = offset + len(tokens)
        while start + window + ahead <= length or (part is None and start < max(1, length)):
            bounds = _bounds(start, length, config)
            yield _cut_piece(tokens, offset, bounds, config, ratio, marker, first)
            first += max(1, -(-(bounds[2] - start) // ratio))
            start += window
        if part is None:
            return
        behind = max(0, min(start - config.compression.overlap, length) - offset)
        tokens, offset = tokens[behind:], offset + behind


def _cut_piece(
    tokens: np.ndarray,
    offset: int,
    bounds: tuple[int, int, int, int],
    config: ModelConfig,
    ratio: int,
    marker: int,
    first: int,
) -> Piece:
    """One window of a context, whose tokens from `offset` on are given."""
    left, start, end, right = bounds
    latents = max(1, -(-(end - start) // ratio))
    own = np.arange(end - start, dtype=np.int32) // ratio
    markers = np.arange(0)
    if config.compression.pooling == "eos" and end > start:
        own, markers = np.full_like(own, -1), np.arange(latents)
    outside = (np.full(start - left, -1), own, np.full(right - end, -1), markers)
    read = np.concatenate([tokens[left - offset : right - offset], np.full(len(markers), marker)])
    return Piece(
        read.astype(np.int32), np.concatenate(outside).astype(np.int32), latents, first=first
    )


@dataclass(frozen=True)
class Size:
    """What an example takes of a row, known from lengths alone."""

    positions: int  # decoder positions
    pieces: tuple[tuple[int, int], ...]  # encoder positions and latents of every piece
    trained: int  # tokens that carry loss
    compressed: int  # tokens read as latents

    @property
    def read(self) -> int:
        """Encoder positions."""
        return sum(length for length, _ in self.pieces)


def measure(record: Sequence[Span], config: ModelConfig) -> Size:
    """The size of what `lay_out` makes of a record; its tokens may be ranges."""
    positions = trained = compressed = 0
    pieces: list[tuple[int, int]] = []
    for span in record:
        if isinstance(span, Plain):
            # The first position of an example is predicted from nothing.
            trained += span.trained * (len(span.tokens) - (positions == 0 and len(span.tokens) > 0))
            positions += len(span.tokens)
        elif isinstance(span, Given):
            positions += span.count + 2
        else:
            ratio = resolve_ratio(span.ratio, config)
            positions += count_latents(len(span.tokens), config, ratio) + 2
            compressed += len(span.tokens)
            for left, start, end, right in window_bounds(len(span.tokens), config):
                latents = max(1, -(-(end - start) // ratio))
                markers = latents if config.compression.pooling == "eos" and end > start else 0
                pieces.append((right - left + markers, latents))
    return Size(positions, tuple(pieces), trained, compressed)


def lay_out(
    record: Sequence[Span], config: ModelConfig, memory: MemoryTokens, stream: int = 0
) -> Example:
    """The arrays of one example: every context becomes start tag, one slot per latent, end tag.

    Position t predicts token t + 1, with weight 1 where that token is trained; tags and slots never are.

    >>> ratio 2, [Plain [5]], Context [7 8 9], Plain [6] trained:
    tokens [5 < * * > 6], slots [-1 -1 0 1 -1 -1], targets [< * * > 6 0], weights [0 0 0 0 1 0]
    """
    tokens, slots, trained, pieces, latents = (
        [np.zeros(0, np.int32)],
        [np.zeros(0, np.int32)],
        [],
        [],
        0,
    )
    for number, span in enumerate(record):
        if isinstance(span, Plain):
            tokens.append(np.asarray(span.tokens, np.int32))
            slots.append(np.full(len(span.tokens), -1))
            trained.append(np.full(len(span.tokens), span.trained))
            continue
        count = (
            span.count
            if isinstance(span, Given)
            else count_latents(len(span.tokens), config, span.ratio)
        )
        tokens.append(np.array([memory.start, *[memory.slot] * count, memory.end]))
        slots.append(np.array([-1, *range(latents, latents + count), -1]))
        trained.append(np.zeros(count + 2, bool))
        latents += count
        if isinstance(span, Context):
            pieces += [
                replace(piece, context=number)
                for piece in split_windows(span, config, memory.marker)
            ]
    flat = np.concatenate(tokens).astype(np.int32)
    following = np.concatenate([*trained, [False]])[1:]
    return Example(
        tokens=flat,
        targets=np.append(flat, 0)[1:].astype(np.int32),
        weights=following.astype(np.float32),
        slots=np.concatenate(slots).astype(np.int32),
        pieces=pieces,
        stream=stream,
    )


def uncompressed(record: Sequence[Span]) -> list[Span]:
    """The same record with every context as plain text."""
    return [Plain(span.tokens) if isinstance(span, Context) else span for span in record]


def language(record: Sequence[Span]) -> list[Span]:
    """The same record as ordinary text, every token of it trained on."""
    return [
        replace(span, trained=True) if isinstance(span, Plain) else span
        for span in uncompressed(record)
    ]


def compressed(record: Sequence[Span], ratio: int) -> list[Span]:
    """The same record with every context at one ratio."""
    return [replace(span, ratio=ratio) if isinstance(span, Context) else span for span in record]


def without_contexts(record: Sequence[Span]) -> list[Span]:
    """The same record with every context left out."""
    return [span for span in record if not isinstance(span, Context)]


# A record as it is evaluated: with latents, with the full text, with neither.
VIEWS: dict[str, Callable[[Sequence[Span]], Sequence[Span]]] = {
    "latents": lambda record: record,
    "text": uncompressed,
    "nothing": without_contexts,
}
