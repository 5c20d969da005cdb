"""The streams of a stage: readers of prepared sources, mixed into one endless order of examples.

An example is addressed by its number in that order, which no host count or worker count changes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import grain
import numpy as np

from lclm_jax.config import Config, ConfigError, DataConfig, StageConfig, Stream
from lclm_jax.data.loading.packing import RowBudget
from lclm_jax.data.loading.sources import PreparedSource
from lclm_jax.data.recipe import TRANSFORMS, draw_ratios, leave_plain
from lclm_jax.data.records import Example, RecordSize, Section, Span, lay_out, measure
from lclm_jax.data.records.views import as_trained_text
from lclm_jax.data.text.tokenizer import Tokenizer

Item = TypeVar("Item")

SAMPLED_EXAMPLES = 512  # per stream, to estimate its trained tokens per example


def stage_directory(config: Config, stage: StageConfig) -> Path:
    """Return the directory of a stage's prepared sources."""
    return Path(config.data.directory) / stage.directory


def row_budget(config: Config, stage: StageConfig) -> RowBudget:
    """Return the capacity of a training row, with the spare latents of `data.spare_latents`."""
    windows = stage.row_windows or config.data.row_windows
    budget = RowBudget.for_model(config.model, config.data.row_positions, windows)
    spare = round(budget.window_latents * config.data.spare_latents)
    return replace(budget, window_latents=budget.window_latents + spare)


@dataclass(frozen=True)
class StageData:
    """The data of a stage: the stage, its config, and the tokenizer of its sources."""

    config: Config
    stage: StageConfig
    tokenizer: Tokenizer

    @property
    def directory(self) -> Path:
        """The directory of the prepared sources."""
        return stage_directory(self.config, self.stage)

    @property
    def budget(self) -> RowBudget:
        """The capacity of a row."""
        return row_budget(self.config, self.stage)

    def open_source(self, name: str, split: str) -> PreparedSource:
        """Open a source; `split` is "train" or "held"."""
        return PreparedSource(self.directory, name, split, self.tokenizer)

    def open_streams(self, split: str = "train") -> list["StreamReader"]:
        """Open a reader of every stream. Raises ConfigError for a source without examples."""
        names = dict.fromkeys(stream.source for stream in self.stage.streams)
        opened = {name: self.open_source(name, split) for name in names}
        for stream in self.stage.streams:
            if not len(opened[stream.source]):
                raise ConfigError(
                    f"source {stream.source} has no {split} examples; leave stream {stream.name} "
                    "out or prepare more"
                )
        return [
            StreamReader(self, number, opened[stream.source])
            for number, stream in enumerate(self.stage.streams)
        ]

    def mix_streams(self, split: str = "train") -> "Mixture":
        """Mix all streams so that each has its share of the stage's trained tokens.

        Raises ConfigError for a stream none of whose examples fits a row.
        """
        readers = self.open_streams(split)
        weights = [reader.settings.share / reader.mean_trained_tokens() for reader in readers]

        def mix(parts: list[grain.MapDataset]) -> grain.MapDataset:
            return grain.MapDataset.mix(parts, weights)

        sources = {reader.source.name: reader.source for reader in readers}
        return Mixture(
            sizes=mix([reader.sizes() for reader in readers]),
            examples=mix([reader.examples() for reader in readers]),
            origins=mix([reader.origins() for reader in readers]),
            distinct=sum(map(len, sources.values())),
            budget=self.budget,
            data=self.config.data,
            fingerprints={name: source.fingerprint for name, source in sources.items()},
        )


@dataclass(frozen=True)
class Mixture:
    """The examples of a stage in one endless order, the same on every host and in every run."""

    sizes: grain.MapDataset  # of (stream, RecordSize)
    examples: grain.MapDataset  # of Example
    origins: grain.MapDataset  # of str: "stream shard:record"
    distinct: int  # prepared examples in all sources
    budget: RowBudget
    data: DataConfig
    fingerprints: Mapping[str, dict[str, Any]]  # of each source's prepared data, by name


@dataclass(frozen=True)
class StreamReader:
    """One stream of a stage: makes records of its source's prepared examples.

    `number` is the stream's index within the stage.
    """

    stage: StageData
    number: int
    source: PreparedSource

    @property
    def settings(self) -> Stream:
        """The stream's settings."""
        return self.stage.stage.streams[self.number]

    @property
    def name(self) -> str:
        """The stream's kind and source, as "sft/tasks"."""
        return self.settings.name

    def make_record(self, example: Sequence[Section], rng: np.random.Generator) -> list[Span]:
        """Return the record of an example; an empty one for an example too short for the stream."""
        config = self.stage.config
        transform = TRANSFORMS[self.settings.kind]
        record = transform(example, rng, config.data, self.stage.tokenizer, self.source.kind)
        record = draw_ratios(record, rng, config.model.compression, config.data.ratio_weights)
        record = leave_plain(record, rng, self.settings.plain_contexts)
        return record if self.stage.stage.compress else as_trained_text(record)

    def record(self, i: int) -> list[Span]:
        """Return a fixed record of example i."""
        return self.make_record(self.source[i], self._rng(i))

    def record_shape(self, i: int) -> list[Span]:
        """Return `record` with ranges in place of tokens, from the index of lengths alone."""
        return self.make_record(self.source.shapes[i], self._rng(i))

    def _rng(self, i: int) -> np.random.Generator:
        return np.random.default_rng([self.stage.config.data.seed, i])

    def spaced(self, most: int) -> range:
        """Return the numbers of at most `most` examples, evenly spaced."""
        return range(0, len(self.source), -(-len(self.source) // most))

    def compressing(self) -> "StreamReader":
        """Return this reader with all contexts compressed, whatever the settings say."""
        streams = tuple(replace(stream, plain_contexts=0.0) for stream in self.stage.stage.streams)
        stage = replace(self.stage.stage, streams=streams, compress=True)
        return replace(self, stage=replace(self.stage, stage=stage))

    def records(self) -> grain.MapDataset:
        """Return the records in an endless order, shuffled anew at every pass."""
        return self._shuffle(self.source).random_map(self.make_record)

    def examples(self) -> grain.MapDataset:
        """Return `records` laid out as arrays."""
        return self.records().map(_LayOut(self))

    def sizes(self) -> grain.MapDataset:
        """Return (stream number, size) of `records`, from the index of lengths alone."""
        shapes = self._shuffle(self.source.shapes).random_map(self.make_record)
        return shapes.map(_Measure(self))

    def origins(self) -> grain.MapDataset:
        """Return the stream, shard and record number of `records`."""
        return self._shuffle(range(len(self.source))).map(_Locate(self))

    def _shuffle(
        self, items: Sequence[Item] | grain.sources.RandomAccessDataSource[Item]
    ) -> grain.MapDataset[Item]:
        config, name = self.stage.config, self.stage.stage.name
        stage_number = [stage.name for stage in config.stages].index(name)
        seed = config.data.seed * 1009 + stage_number * 101 + self.number
        return grain.MapDataset.source(items).seed(seed).shuffle().repeat()

    def mean_trained_tokens(self) -> float:
        """Estimate the trained tokens per example; examples that fit no row count as 0.

        Contexts are compressed whatever the stage says. Raises ConfigError where no example fits:
        the stream could never have its share.
        """
        budget, reader = self.stage.budget, self.compressing()
        model = self.stage.config.model
        sizes = [measure(reader.record_shape(i), model) for i in self.spaced(SAMPLED_EXAMPLES)]
        trained = [size.trained if budget.fits(size) else 0 for size in sizes]
        mean = float(np.mean(trained))
        if not mean:
            raise self._nothing_fits(sizes, budget)
        return mean

    def _nothing_fits(self, sizes: Sequence[RecordSize], budget: RowBudget) -> ConfigError:
        made = [size for size in sizes if size.positions]
        smallest = min(made, key=lambda size: size.positions, default=sizes[0])
        return ConfigError(
            f"none of {len(sizes)} examples of stream {self.name} fits a row of "
            f"{budget.positions} positions and {budget.windows} windows with a token to train on, "
            f"the smallest takes {smallest.positions} positions and {len(smallest.pieces)} "
            "windows; raise data.row_positions or data.row_windows, or leave the stream out"
        )


@dataclass(frozen=True)
class _LayOut(grain.transforms.Map):
    reader: StreamReader

    def map(self, record: Sequence[Span]) -> Example:
        stage = self.reader.stage
        return lay_out(record, stage.config.model, stage.tokenizer.memory, self.reader.number)


@dataclass(frozen=True)
class _Measure(grain.transforms.Map):
    reader: StreamReader

    def map(self, record: Sequence[Span]) -> tuple[int, RecordSize]:
        return self.reader.number, measure(record, self.reader.stage.config.model)


@dataclass(frozen=True)
class _Locate(grain.transforms.Map):
    reader: StreamReader

    def map(self, i: int) -> str:
        return f"{self.reader.name} {self.reader.source.where(int(i))}"
