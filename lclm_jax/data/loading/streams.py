"""The input pipeline: prepared sources -> records -> one weighted order -> packed batches, as a Grain dataset that resumes.

Examples are addressed by their number in one global order that no host count or worker count changes. Every host plans all
rows from lengths and reads the tokens of its own rows only; the state is the next number and the numbers that still wait.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grain
import numpy as np

from lclm_jax.batch import Batch
from lclm_jax.config import Config, ConfigError, StageConfig
from lclm_jax.data.loading.packing import Budget, Row, Seat, assemble, choose_row
from lclm_jax.data.loading.sources import Prepared, Shapes
from lclm_jax.data.recipe.transforms import STREAMS, draw_ratios
from lclm_jax.data.records.spans import Example, Size, Span, language, lay_out, measure
from lclm_jax.data.records.stretches import Stretch
from lclm_jax.data.text.tokenizer import Tokenizer

MOST_LEFT_OUT = (
    1000  # examples in a row that may be too long or too short before the settings must be wrong
)
SAMPLE = 512  # examples of a stream that its trained tokens are estimated from


@dataclass(frozen=True)
class Order:
    """The examples of a stage by number, the same on every host and every run; endless."""

    sizes: grain.MapDataset  # of (stream, Size)
    examples: grain.MapDataset  # of Example
    records: grain.MapDataset  # of str: the stream, and the shard and record an example is made of
    distinct: int  # records, in all sources
    budget: Budget  # of a row
    sources: dict[str, dict[str, Any]]  # the fingerprint of each source's prepared data, by name


def stage_order(
    config: Config, stage: StageConfig, tokenizer: Tokenizer, split: str = "train"
) -> Order:
    """Every stream of a stage, shuffled, endless, mixed so that each has its share of the trained tokens."""
    sources = open_sources(config, stage, tokenizer, split)
    planned = [
        stream_records(config, stage, number, source, source.shapes, tokenizer)
        for number, source in enumerate(sources)
    ]
    read = [
        stream_records(config, stage, number, source, source, tokenizer)
        for number, source in enumerate(sources)
    ]
    sizes = [part.map(_Measured(config, number)) for number, part in enumerate(planned)]
    trained = [
        trained_tokens(config, stage, number, source, tokenizer)
        for number, source in enumerate(sources)
    ]
    weights = [stream.share / mean for stream, mean in zip(stage.streams, trained, strict=True)]
    examples = [part.map(_LaidOut(config, tokenizer, number)) for number, part in enumerate(read)]
    origins = [
        shuffle(config, stage, number, range(len(source))) for number, source in enumerate(sources)
    ]
    records = [
        part.map(_Named(stage.streams[number].name, sources[number]))
        for number, part in enumerate(origins)
    ]
    mixed = [grain.MapDataset.mix(parts, weights) for parts in (sizes, examples, records)]
    total = sum(map(len, {source.name: source for source in sources}.values()))
    fingerprints = {source.name: source.fingerprint for source in sources}
    return Order(*mixed, total, budget(config, stage), fingerprints)


def stage_batches(
    order: Order, config: Config, rows: Sequence[int] | None = None
) -> grain.IterDataset:
    """These rows of every global batch of a stage, or all, prefetched; the iterator's state is the same on all hosts."""
    return grain.experimental.ThreadPrefetchIterDataset(
        PackedBatches(order, config, rows), prefetch_buffer_size=4
    )


def batch_records(order: Order, config: Config, state: dict[str, Any]) -> list[list[str]]:
    """What each row of a batch was made of, by the state an iterator had before it: stream, shard and record of every example."""
    iterator = _iterator_at(order, config, state)
    return [
        [str(order.records[i]) for i in iterator.plan_row()[0]] for _ in range(config.data.rows)
    ]


def batch_at(order: Order, config: Config, state: dict[str, Any]) -> Batch:
    """The whole global batch that follows the state an iterator had before it."""
    return next(_iterator_at(order, config, state))


def _iterator_at(order: Order, config: Config, state: dict[str, Any]) -> "PackedIterator":
    iterator = iter(PackedBatches(order, config))
    iterator.set_state(state)
    return iterator


def stage_directory(config: Config, stage: StageConfig) -> Path:
    """Where a stage's prepared sources lie."""
    return Path(config.data.directory) / stage.directory


def open_sources(
    config: Config, stage: StageConfig, tokenizer: Tokenizer, split: str
) -> list[Prepared]:
    """The source of every stream of a stage."""
    directory = stage_directory(config, stage)
    opened = {
        stream.source: Prepared(directory, stream.source, split, tokenizer)
        for stream in stage.streams
    }
    for stream in stage.streams:
        if not len(opened[stream.source]):
            raise ConfigError(
                f"source {stream.source} has no {split} examples; leave stream {stream.name} out or prepare more"
            )
    return [opened[stream.source] for stream in stage.streams]


def trained_tokens(
    config: Config, stage: StageConfig, number: int, source: Prepared, tokenizer: Tokenizer
) -> float:
    """Mean trained tokens of some of a stream's examples, evenly spaced and compressed; none for those that fit no row.

    Raises ConfigError when there are none at all: the stream could never have its share.
    """
    room, make = (
        budget(config, stage),
        record_maker(config, replace(stage, compress=True), number, source, tokenizer),
    )
    chosen = range(0, len(source), -(-len(source) // SAMPLE))
    sizes = [
        measure(make(source.shapes[i], np.random.default_rng([config.data.seed, i])), config.model)
        for i in chosen
    ]
    mean = float(np.mean([size.trained if room.holds(size) else 0 for size in sizes]))
    if not mean:
        smallest = min(
            (size for size in sizes if size.positions),
            key=lambda size: size.positions,
            default=sizes[0],
        )
        raise ConfigError(
            f"none of {len(sizes)} examples of stream {stage.streams[number].name} fits a row of {room.positions} positions and "
            f"{room.windows} windows with a token to train on, the smallest takes {smallest.positions} positions and "
            f"{len(smallest.pieces)} windows; raise data.positions or data.windows, or leave the stream out"
        )
    return mean


def record_maker(
    config: Config, stage: StageConfig, number: int, source: Prepared, tokenizer: Tokenizer
) -> Callable[[Sequence[Stretch], np.random.Generator], list[Span]]:
    """What makes a record of an example of a stream."""
    transform, data, compression = (
        STREAMS[stage.streams[number].kind],
        config.data,
        config.model.compression,
    )

    def make(example: Sequence[Stretch], rng: np.random.Generator) -> list[Span]:
        record = transform(example, rng, data, tokenizer, source.kind)
        record = draw_ratios(record, rng, compression, data.ratio_weights)
        return record if stage.compress else language(record)

    return make


def stream_records(
    config: Config,
    stage: StageConfig,
    number: int,
    source: Prepared,
    examples: Prepared | Shapes,
    tokenizer: Tokenizer,
) -> grain.MapDataset:
    """Records of a stream, shuffled anew at every pass, endless; of tokens or of ranges, as `examples` has them."""
    shuffled = shuffle(config, stage, number, examples)
    return shuffled.random_map(record_maker(config, stage, number, source, tokenizer))


def shuffle(
    config: Config, stage: StageConfig, number: int, examples: Prepared | Shapes | range
) -> grain.MapDataset:
    """The examples of a stream in another order at every pass, endless."""
    seed = (
        config.data.seed * 1009
        + [one.name for one in config.stages].index(stage.name) * 101
        + number
    )
    return grain.MapDataset.source(examples).seed(seed).shuffle().repeat()


@dataclass(frozen=True)
class _Named(grain.transforms.Map):
    stream: str
    source: Prepared

    def map(self, i: int) -> str:
        return f"{self.stream} {self.source.where(int(i))}"


@dataclass(frozen=True)
class _Measured(grain.transforms.Map):
    config: Config
    stream: int

    def map(self, record: Sequence[Span]) -> tuple[int, Size]:
        return self.stream, measure(record, self.config.model)


@dataclass(frozen=True)
class _LaidOut(grain.transforms.Map):
    config: Config
    tokenizer: Tokenizer
    stream: int

    def map(self, record: Sequence[Span]) -> Example:
        return lay_out(record, self.config.model, self.tokenizer.memory, self.stream)


def budget(config: Config, stage: StageConfig) -> Budget:
    """Of a training row; its windows hold more latents than one full context has."""
    room = Budget.of(config.model, config.data.positions, stage.windows or config.data.windows)
    return replace(
        room,
        window_latents=room.window_latents + round(room.window_latents * config.data.spare_latents),
    )


class PackedBatches(grain.IterDataset[Batch]):
    """Packs an endless order of examples into global batches and yields some rows of each: those a host needs, or all."""

    def __init__(self, order: Order, config: Config, rows: Sequence[int] | None = None):
        super().__init__()
        self.order, self.config = order, config
        self.rows = range(config.data.rows) if rows is None else rows
        hosts = config.data.rows // len(self.rows)
        if order.distinct < hosts:
            raise ConfigError(
                f"expected at least one example for each of {hosts} hosts, got {order.distinct}; prepare more"
            )

    def __iter__(self) -> "PackedIterator":
        return PackedIterator(self)


class PackedIterator(grain.DatasetIterator[Batch]):
    """State: the number of the next example, those that wait for a row, and what was left out, by stream and reason."""

    def __init__(self, source: PackedBatches):
        super().__init__()
        self.source = source
        self._budget = source.order.budget
        self._next = 0
        self._waiting: list[tuple[int, Size]] = []
        self._left_out: dict[str, dict[str, int]] = {}
        self._in_a_row = 0  # left out, since the last that was not

    def __next__(self) -> Batch:
        source = self.source
        planned = [self.plan_row() for _ in range(source.config.data.rows)]
        own, examples = [planned[row] for row in source.rows], source.order.examples
        return assemble(
            [Row(self._budget, [examples[i] for i in numbers], seats) for numbers, seats in own]
        )

    def plan_row(self) -> tuple[list[int], list[list[Seat]]]:
        """Numbers of the examples of the next row, and the seats of their pieces."""
        while len(self._waiting) < self.source.config.data.lookahead:
            self._take(self._next)
            self._next += 1
        chosen, seating = choose_row([size for _, size in self._waiting], self._budget)
        numbers = [self._waiting[i][0] for i in chosen]
        for i in sorted(chosen, reverse=True):
            del self._waiting[i]
        return numbers, seating.seats

    def _take(self, number: int):
        stream, size = self.source.order.sizes[number]  # type: ignore[misc]
        if size.positions and self._budget.holds(size):
            self._in_a_row = 0
            self._waiting.append((number, size))
            return
        reasons = self._left_out.setdefault(str(stream), {})
        reason = "too long" if size.positions else "too short"
        reasons[reason] = reasons.get(reason, 0) + 1
        self._in_a_row += 1
        if self._in_a_row == MOST_LEFT_OUT:
            raise ConfigError(
                f"{MOST_LEFT_OUT} examples in a row were left out, the last one of stream {stream} as {reason} for a row of "
                f"{self._budget.positions} positions and {self._budget.windows} windows: it has {size.positions} positions and "
                f"{len(size.pieces)} windows; change data.positions, data.windows or data.shortest_segment"
            )

    def get_state(self) -> dict[str, Any]:
        left_out = {stream: dict(reasons) for stream, reasons in self._left_out.items()}
        return {
            "next": self._next,
            "waiting": [number for number, _ in self._waiting],
            "left_out": left_out,
        }

    def set_state(self, state: dict[str, Any]):
        self._next = state["next"]
        self._left_out = {stream: dict(reasons) for stream, reasons in state["left_out"].items()}
        self._waiting = [
            (number, self.source.order.sizes[number][1]) for number in state["waiting"]
        ]  # type: ignore[misc]
