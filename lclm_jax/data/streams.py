"""The input pipeline: sources -> records -> one weighted order -> packed batches, as a Grain dataset that can be resumed.

Examples are addressed by their number in one global order that no host count or worker count changes, so the state of
the pipeline is a handful of numbers: the next example and which examples wait in open rows.
"""

from collections.abc import Callable
from typing import Any

import grain
import numpy as np

from lclm_jax.config import Config, ConfigError, StageConfig
from lclm_jax.data.batch import Batch
from lclm_jax.data.packing import Budget, Row, assemble, best_row
from lclm_jax.data.sources import open_source, unpack_raw
from lclm_jax.data.spans import Example, Span, language, lay_out
from lclm_jax.data.tokens import Tokenizer
from lclm_jax.data.transforms import STREAMS, draw_ratios

MOST_TOO_LONG = 1000  # examples in a row that may be too long before the budgets must be wrong


def stage_batches(config: Config, stage: StageConfig, tokenizer: Tokenizer, host: int = 0, hosts: int = 1) -> grain.IterDataset:
    """This host's share of every global batch of a stage, prefetched; the iterator's state is the same on all hosts."""
    batches = PackedBatches(stage_examples(config, stage, tokenizer), config, host, hosts)
    return grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=4)


def stage_examples(config: Config, stage: StageConfig, tokenizer: Tokenizer, split: str = "train") -> grain.MapDataset:
    """Every stream of a stage, shuffled, endless, mixed by share: example i is the same on every host and every run."""
    seed = config.data.seed * 1009 + config.stages.index(stage) * 101
    parts = []
    for number, stream in enumerate(stage.streams):
        packed = open_source(config.data.directory, stream.source, split)
        if not len(packed):
            raise ConfigError(f"source {stream.source} has no {split} examples; leave stream {stream.name} out or prepare more")
        build = _builder(STREAMS[stream.kind], config, tokenizer, number, stage.compress)
        parts.append(grain.MapDataset.source(packed).seed(seed + number).shuffle().repeat().random_map(build))
    return grain.MapDataset.mix(parts, [stream.share for stream in stage.streams])


def _builder(transform: Callable[..., list[Span]], config: Config, tokenizer: Tokenizer, stream: int, compress: bool):
    def build(packed: bytes, rng: np.random.Generator) -> Example:
        record = draw_ratios(transform(unpack_raw(packed), rng, config.data, tokenizer), rng, config.model.compression)
        return lay_out(record if compress else language(record), config.model, tokenizer.memory, stream)

    return build


def budget(config: Config) -> Budget:
    return Budget.of(config.model, config.data.positions, config.data.windows)


class PackedBatches(grain.IterDataset[Batch]):
    """Packs an endless order of examples into global batches and yields one host's rows of each."""

    def __init__(self, examples: grain.MapDataset, config: Config, host: int = 0, hosts: int = 1):
        super().__init__()
        if config.data.rows % hosts:
            raise ConfigError(f"data.rows must divide over the hosts, got data.rows={config.data.rows} on {hosts} hosts")
        self.examples, self.config, self.host, self.hosts = examples, config, host, hosts

    def __iter__(self) -> "PackedIterator":
        return PackedIterator(self)


class PackedIterator(grain.DatasetIterator[Batch]):
    """State: the number of the next example, the examples in each open row, and what was too long, by stream."""

    def __init__(self, source: PackedBatches):
        super().__init__()
        self._source = source
        self._budget = budget(source.config)
        self._next = 0
        self._open: list[tuple[Row, list[int]]] = []
        self._too_long: dict[str, int] = {}
        self._in_a_row = 0  # too long, since the last that fitted

    def __next__(self) -> Batch:
        source = self._source
        rows: list[Row] = []
        while len(rows) < source.config.data.rows:
            full = self._take(self._next, source.examples[self._next])
            self._next += 1
            if full is not None:
                rows.append(full)
        share = len(rows) // source.hosts
        return assemble(rows[source.host * share : (source.host + 1) * share])

    def _take(self, number: int, example: Example) -> Row | None:
        """Puts an example into an open row, and returns the fullest row once too many are open."""
        if not self._budget.fits_alone(example):
            self._too_long[str(example.stream)] = self._too_long.get(str(example.stream), 0) + 1
            self._in_a_row += 1
            if self._in_a_row == MOST_TOO_LONG:
                raise ConfigError(
                    f"{MOST_TOO_LONG} examples in a row do not fit a row of {self._budget.positions} positions and "
                    f"{self._budget.windows} windows, the last of stream {example.stream} with {len(example)} positions and "
                    f"{len(example.pieces)} windows; raise data.positions or data.windows"
                )
            return None
        self._in_a_row = 0
        best = best_row([row for row, _ in self._open], example)
        if best is None:
            best = len(self._open)
            self._open.append((Row(self._budget), []))
        self._put(best, number, example)
        if len(self._open) <= self._source.config.data.open_rows:
            return None
        fullest = max(range(len(self._open)), key=lambda i: self._open[i][0].length)
        return self._open.pop(fullest)[0]

    def _put(self, row: int, number: int, example: Example):
        seats = self._open[row][0].find(example)
        assert seats is not None, f"example {number} was given a row it does not fit"
        self._open[row][0].add(example, seats)
        self._open[row][1].append(number)

    def get_state(self) -> dict[str, Any]:
        return {"next": self._next, "open": [numbers.copy() for _, numbers in self._open], "too_long": dict(self._too_long)}

    def set_state(self, state: dict[str, Any]):
        self._next, self._too_long = state["next"], dict(state["too_long"])
        self._open = [(Row(self._budget), []) for _ in state["open"]]
        for row, numbers in enumerate(state["open"]):
            for number in numbers:
                self._put(row, number, self._source.examples[number])
