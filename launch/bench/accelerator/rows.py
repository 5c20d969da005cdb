"""Random inputs: texts, and a training row made by the project's packer."""

from collections.abc import Sequence

import numpy as np

from lclm_jax.batch import Batch
from lclm_jax.config import Config
from lclm_jax.data.loading import RowBudget, assemble, fill_row
from lclm_jax.data.records import Context, Plain, Span, lay_out
from lclm_jax.data.synthetic.corpus import train_tokenizer
from lclm_jax.data.text.tokenizer import Tokenizer

# Share of the row's positions that each example takes. The contexts are whole windows, so that
# PyTorch can read them without a mask.
SHARES = (0.26, 0.2, 0.18, 0.15, 0.12, 0.08)
# Share of an example's plain tokens that come before its context and are not trained.
UNTRAINED_SHARE = 0.25


def small_tokenizer() -> Tokenizer:
    """Return a tokenizer of which only the control tokens are used."""
    return train_tokenizer(["benchmark"], 512)


def training_row(config: Config, tokenizer: Tokenizer, seed: int = 0) -> Batch:
    """Return a row of examples: plain text, a context of whole windows, and trained text."""
    model, positions, windows = config.model, config.data.row_positions, config.data.row_windows
    rng, window = np.random.default_rng(seed), model.compression.window

    def tokens(count: int) -> np.ndarray:
        return rng.integers(0, model.encoder.vocab, count).astype(np.int32)

    records: list[list[Span]] = []
    for share, count in zip(SHARES, window_counts(windows), strict=False):
        plain = int(share * positions) - count * (window // model.compression.ratio) - 2
        before = int(UNTRAINED_SHARE * plain)
        records.append(
            [
                Plain(tokens(before)),
                Context(tokens(count * window)),
                Plain(tokens(plain - before), trained=True),
            ]
        )
    examples = [lay_out(record, model, tokenizer.memory) for record in records]
    return assemble([fill_row(RowBudget.for_model(model, positions, windows), examples)])


def window_counts(windows: int) -> list[int]:
    """Return the number of windows of each example's context, the longest first.

    >>> window_counts(14), window_counts(5)
    ([5, 3, 2, 2, 1, 1], [2, 1, 1, 1])
    """
    counts: list[int] = []
    while (left := windows - sum(counts)) > 0:
        last = len(counts) == len(SHARES) - 1
        counts.append(left if last else -(-left // 3))
    return counts


def segments_of(lengths: Sequence[int], total: int) -> tuple[np.ndarray, np.ndarray]:
    """Return segments and positions [total] of consecutive examples, padded at the end."""
    segments, positions, start = np.zeros(total, np.int32), np.zeros(total, np.int32), 0
    for number, length in enumerate(lengths, start=1):
        segments[start : start + length] = number
        positions[start : start + length] = np.arange(length)
        start += length
    return segments, positions
