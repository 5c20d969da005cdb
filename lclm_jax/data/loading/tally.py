"""Counts over a stream's examples: tokens before and after compression, segments, trained."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lclm_jax.data.records import Context, Plain, RecordSize, Span

SUMMED = (
    "documents",
    "tokens",
    "positions",
    "encoder_positions",
    "compressed",
    "trained",
    "too_long",
    "too_short",
)


@dataclass
class Tally:
    """Counts over some examples of one stream."""

    documents: int = 0
    tokens: int = 0  # as written
    positions: int = 0  # decoder positions
    encoder_positions: int = 0
    compressed: int = 0  # tokens read as latents
    trained: int = 0  # tokens that carry loss
    too_long: int = 0  # examples that fit no row
    too_short: int = 0  # examples that give no record
    contexts: Counter[int] = field(default_factory=Counter)  # examples by their number of contexts
    # Of examples with several context segments, the first one's share of their tokens.
    first_context_shares: list[float] = field(default_factory=list)
    # Of examples with several trained segments, the last one's share of their tokens.
    last_plain_shares: list[float] = field(default_factory=list)
    shortest_segment: int | None = None  # tokens

    def add(self, record: Sequence[Span], size: RecordSize, length: int, fits: bool):
        """Count an example of `length` tokens: its record, the record's size, if it fits a row."""
        self.documents += 1
        self.tokens += length
        if not record:
            self.too_short += 1
            return
        self.positions += size.positions
        self.encoder_positions += size.encoder_positions
        self.compressed += size.compressed
        self.trained += size.trained
        self.too_long += not fits
        self._add_segments(record)

    def _add_segments(self, record: Sequence[Span]):
        contexts = [len(span.tokens) for span in record if isinstance(span, Context)]
        plain = [len(span.tokens) for span in record if isinstance(span, Plain) and span.trained]
        self.contexts[len(contexts)] += 1
        if len(contexts) > 1 and sum(contexts):
            self.first_context_shares.append(contexts[0] / sum(contexts))
        if len(plain) > 1 and sum(plain):
            self.last_plain_shares.append(plain[-1] / sum(plain))
        self.shortest_segment = _smallest([self.shortest_segment, *contexts, *plain])

    def to_dict(self) -> dict[str, Any]:
        """Return the counts under the names that the report on data reads."""
        return {
            "documents": self.documents,
            "tokens_before": self.tokens,
            "tokens_after": self.positions,
            "encoder_tokens": self.encoder_positions,
            "compressed_tokens": self.compressed,
            "trainable_tokens": self.trained,
            "too_long": self.too_long,
            "too_short": self.too_short,
            "pairs": {str(count): self.contexts[count] for count in sorted(self.contexts)},
            "first_wrapped_share": _spread(self.first_context_shares),
            "last_plain_share": _spread(self.last_plain_shares),
            "shortest_segment": self.shortest_segment,
        }


def add_tallies(tallies: Iterable[Tally]) -> Tally:
    """Return the counts of several tallies together."""
    total = Tally()
    for tally in tallies:
        for name in SUMMED:
            setattr(total, name, getattr(total, name) + getattr(tally, name))
        total.contexts.update(tally.contexts)
        total.first_context_shares += tally.first_context_shares
        total.last_plain_shares += tally.last_plain_shares
        total.shortest_segment = _smallest([total.shortest_segment, tally.shortest_segment])
    return total


def _smallest(lengths: Iterable[int | None]) -> int | None:
    return min((length for length in lengths if length is not None), default=None)


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    array = np.array(values)
    return {"min": float(array.min()), "median": float(np.median(array)), "max": float(array.max())}
