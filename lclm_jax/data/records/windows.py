"""Contexts cut into encoder windows, and the number of latents they become."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lclm_jax.config import ConfigError, ModelConfig
from lclm_jax.data.records.spans import Context


@dataclass(frozen=True)
class ContextPiece:
    """The part of a context that one encoder window reads, with its overlap and eos markers."""

    tokens: np.ndarray  # [w]
    groups: np.ndarray  # [w] latent of this piece each token is pooled into, or -1
    latents: int
    context: int = 0  # index of its context within the example
    first: int = 0  # index of its first latent within that context


class WindowBounds(NamedTuple):
    """Positions of one window in its context: it reads [left, right) and pools [start, end)."""

    left: int
    start: int
    end: int
    right: int

    def count_latents(self, ratio: int) -> int:
        """Return ceil(own tokens / ratio); an empty window has one latent."""
        return max(1, _ceil_divide(self.end - self.start, ratio))


def resolve_ratio(ratio: int | None, config: ModelConfig) -> int:
    """Return the ratio a context is read at: the default for None.

    Raises ConfigError for a ratio the model was not trained for.
    """
    ratios = config.compression.all_ratios
    if ratio is None:
        return ratios[0]
    if ratio not in ratios:
        listed = ", ".join(map(str, ratios))
        raise ConfigError(
            f"this model compresses at ratio {listed}, got ratio={ratio!r}; load a model trained "
            f"for ratio {ratio}, or add it to compression.ratios"
        )
    return ratio


def count_latents(length: int, config: ModelConfig, ratio: int | None = None) -> int:
    """Count the latents of a context of `length` tokens.

    Each window has ceil(tokens / ratio); an empty context has one latent. With ratio 4 and windows
    of 32 tokens, lengths 0, 5, 32 and 33 give 1, 2, 8 and 9 latents.
    """
    ratio, window = resolve_ratio(ratio, config), config.compression.window
    full_windows, rest = divmod(length, window)
    return max(1, full_windows * (window // ratio) + _ceil_divide(rest, ratio))


def latent_starts(length: int, config: ModelConfig, ratio: int | None = None) -> np.ndarray:
    """Return the first token [M] of each latent of a context of `length` tokens.

    With ratio 2 and windows of 4 tokens, a context of 7 tokens has latents from 0, 2, 4 and 6 on.
    """
    numbers = np.arange(count_latents(length, config, ratio))
    ratio, window = resolve_ratio(ratio, config), config.compression.window
    windows, places = np.divmod(numbers, window // ratio)
    return windows * window + places * ratio


def window_bounds(length: int, config: ModelConfig) -> Iterator[WindowBounds]:
    """Yield the bounds of every window of a context of `length` tokens."""
    for start in range(0, max(1, length), config.compression.window):
        yield _bounds_from(start, length, config)


def _bounds_from(start: int, length: int, config: ModelConfig) -> WindowBounds:
    overlap = config.compression.overlap
    end = min(start + config.compression.window, length)
    right = end if config.encoder.causal else min(length, end + overlap)
    return WindowBounds(max(0, start - overlap), start, end, right)


def split_windows(context: Context, config: ModelConfig, marker: int = 0) -> list[ContextPiece]:
    """Cut a context every `compression.window` tokens (checkpoint format, "Behaviour").

    Overlap tokens to the left (and right, when bidirectional) are read and not pooled; eos pooling
    pools `marker` tokens appended to the text instead of the text. An empty context is one piece
    of no tokens and one zero latent. With ratio 2 and windows of 4 tokens, [7 8 9 5 6] gives the
    pieces [7 8 9 5] in groups [0 0 1 1] and [6] in group [0].
    """
    return list(cut_windows([np.asarray(context.tokens)], config, context.ratio, marker))


def cut_windows(
    parts: Iterable[np.ndarray], config: ModelConfig, ratio: int | None = None, marker: int = 0
) -> Iterator[ContextPiece]:
    """Yield the pieces of `split_windows` from tokens that arrive in parts.

    Each piece is yielded as soon as its tokens have arrived.
    """
    ratio, compression = resolve_ratio(ratio, config), config.compression
    lookahead = 0 if config.encoder.causal else compression.overlap
    tokens, offset = np.zeros(0, np.int32), 0  # `offset` tokens before these were dropped
    start = first_latent = 0
    parts = iter(parts)
    finished = False
    while not finished:
        part = next(parts, None)
        finished = part is None
        if part is not None:
            tokens = np.concatenate([tokens, part])
        length = offset + len(tokens)
        while start + compression.window + lookahead <= length or (
            finished and start < max(1, length)
        ):
            bounds = _bounds_from(start, length, config)
            yield _cut_piece(tokens, offset, bounds, config, ratio, marker, first_latent)
            first_latent += bounds.count_latents(ratio)
            start += compression.window
        unused = max(0, min(start - compression.overlap, length) - offset)
        tokens, offset = tokens[unused:], offset + unused


def _cut_piece(
    tokens: np.ndarray,
    offset: int,
    bounds: WindowBounds,
    config: ModelConfig,
    ratio: int,
    marker: int,
    first_latent: int,
) -> ContextPiece:
    """Cut one window out of a context whose tokens from `offset` on are given."""
    left, start, end, right = bounds
    latents = bounds.count_latents(ratio)
    groups = np.arange(end - start, dtype=np.int32) // ratio
    marker_groups = np.arange(0)
    if config.compression.pooling == "eos" and end > start:
        groups, marker_groups = np.full_like(groups, -1), np.arange(latents)
    before, after = np.full(start - left, -1), np.full(right - end, -1)
    read = tokens[left - offset : right - offset]
    return ContextPiece(
        np.concatenate([read, np.full(len(marker_groups), marker)]).astype(np.int32),
        np.concatenate([before, groups, after, marker_groups]).astype(np.int32),
        latents,
        first=first_latent,
    )


def _ceil_divide(number: int, divisor: int) -> int:
    return -(-number // divisor)
