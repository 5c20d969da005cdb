"""Packed batches of a stage, as a Grain dataset that resumes on any number of hosts.

Every host plans all rows from lengths and reads the tokens of its own rows only. The state is the
number of the next example and the numbers of those that still wait for a row.
"""

from collections.abc import Sequence
from typing import Any, cast

import grain

from lclm_jax.batch import Batch
from lclm_jax.config import ConfigError
from lclm_jax.data.loading.packing import PackedRow, PieceOffset, assemble, choose_row
from lclm_jax.data.loading.streams import Mixture
from lclm_jax.data.records import Example, RecordSize

# Examples that may be too long or too short in a row before the settings must be wrong.
MAX_LEFT_OUT_IN_A_ROW = 1000
PREFETCHED_BATCHES = 4


def prefetch_batches(mixture: Mixture, rows: Sequence[int] | None = None) -> grain.IterDataset:
    """Return `PackedBatches` made ahead of time in a thread."""
    return grain.experimental.ThreadPrefetchIterDataset(
        PackedBatches(mixture, rows), prefetch_buffer_size=PREFETCHED_BATCHES
    )


def batch_origins(mixture: Mixture, state: dict[str, Any]) -> list[list[str]]:
    """Return the stream, shard and record number of every example of a batch, row by row.

    `state` is the iterator's before the batch.
    """
    iterator = _iterator_at(mixture, state)
    rows = [iterator.plan_row()[0] for _ in range(mixture.data.batch_rows)]
    return [[str(mixture.origins[number]) for number in numbers] for numbers in rows]


def batch_at(mixture: Mixture, state: dict[str, Any]) -> Batch:
    """Return the whole global batch whose iterator had this state before it."""
    return next(_iterator_at(mixture, state))


def _iterator_at(mixture: Mixture, state: dict[str, Any]) -> "PackedIterator":
    iterator = iter(PackedBatches(mixture))
    iterator.set_state(state)
    return iterator


class PackedBatches(grain.IterDataset[Batch]):
    """The global batches of a mixture, packed; yields these rows of each, or all.

    Raises ConfigError for fewer examples than hosts, each of which reads as many rows.
    """

    def __init__(self, mixture: Mixture, rows: Sequence[int] | None = None):
        super().__init__()
        self.mixture = mixture
        self.rows = range(mixture.data.batch_rows) if rows is None else rows
        hosts = mixture.data.batch_rows // len(self.rows)
        if mixture.distinct < hosts:
            raise ConfigError(
                f"expected at least one example for each of {hosts} hosts, got "
                f"{mixture.distinct}; prepare more"
            )

    def __iter__(self) -> "PackedIterator":
        return PackedIterator(self)


class PackedIterator(grain.DatasetIterator[Batch]):
    """The iterator of `PackedBatches`.

    Its state holds the number of the next example ("next"), the numbers of those that wait for a
    row ("waiting"), and counts of those left out by stream and reason ("left_out"). All hosts have
    the same state.
    """

    def __init__(self, batches: PackedBatches):
        super().__init__()
        self.batches, self.mixture = batches, batches.mixture
        self._next = 0
        self._waiting: list[tuple[int, RecordSize]] = []
        self._left_out: dict[str, dict[str, int]] = {}
        self._left_out_in_a_row = 0

    def __next__(self) -> Batch:
        planned = [self.plan_row() for _ in range(self.mixture.data.batch_rows)]
        return assemble([self._read_row(*planned[row]) for row in self.batches.rows])

    def _read_row(self, numbers: list[int], offsets: list[list[PieceOffset]]) -> PackedRow:
        examples = [self.mixture.examples[number] for number in numbers]
        # No number is without an example: nothing filters them.
        return PackedRow(self.mixture.budget, cast(list[Example], examples), offsets)

    def plan_row(self) -> tuple[list[int], list[list[PieceOffset]]]:
        """Return the numbers of the examples of the next row, and the offsets of their pieces."""
        while len(self._waiting) < self.mixture.data.packing_lookahead:
            self._take(self._next)
            self._next += 1
        sizes = [size for _, size in self._waiting]
        chosen, packer = choose_row(sizes, self.mixture.budget)
        numbers = [self._waiting[i][0] for i in chosen]
        for i in sorted(chosen, reverse=True):
            del self._waiting[i]
        return numbers, packer.offsets

    def _take(self, number: int):
        """Let an example wait for a row, or count it as left out."""
        stream, size = self._size(number)
        if size.positions and self.mixture.budget.fits(size):
            self._left_out_in_a_row = 0
            self._waiting.append((number, size))
            return
        reason = "too long" if size.positions else "too short"
        counts = self._left_out.setdefault(str(stream), {})
        counts[reason] = counts.get(reason, 0) + 1
        self._left_out_in_a_row += 1
        if self._left_out_in_a_row == MAX_LEFT_OUT_IN_A_ROW:
            raise self._nothing_fits(stream, size, reason)

    def _size(self, number: int) -> tuple[int, RecordSize]:
        return self.mixture.sizes[number]  # type: ignore[return-value]

    def _nothing_fits(self, stream: int, size: RecordSize, reason: str) -> ConfigError:
        budget = self.mixture.budget
        return ConfigError(
            f"{MAX_LEFT_OUT_IN_A_ROW} examples in a row were left out, the last one of stream "
            f"{stream} as {reason} for a row of {budget.positions} positions and {budget.windows} "
            f"windows: it has {size.positions} positions and {len(size.pieces)} windows; change "
            "data.row_positions, data.row_windows or data.min_segment_length"
        )

    def get_state(self) -> dict[str, Any]:
        """Return the state before the next batch; its values are fit for JSON."""
        return {
            "next": self._next,
            "waiting": [number for number, _ in self._waiting],
            "left_out": {stream: dict(counts) for stream, counts in self._left_out.items()},
        }

    def set_state(self, state: dict[str, Any]):
        """Continue from a state, of any number of hosts."""
        self._next = state["next"]
        self._left_out = {stream: dict(counts) for stream, counts in state["left_out"].items()}
        self._waiting = [(number, self._size(number)[1]) for number in state["waiting"]]
