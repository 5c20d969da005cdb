"""A survey of prepared data under a config: lengths, contexts, trained tokens, full rows.

Planned from lengths alone, as training plans its rows. `launch.inspect_data` shows the result.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lclm_jax.config import Config, Recipe, StageConfig
from lclm_jax.config.values import from_dict
from lclm_jax.data.loading.batches import PackedBatches, PackedIterator
from lclm_jax.data.loading.sources import PreparedSource, read_manifest
from lclm_jax.data.loading.streams import Mixture, StageData, StreamReader
from lclm_jax.data.loading.tally import Tally, add_tallies
from lclm_jax.data.records import RecordSize, Span, measure
from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.progress import Progress, without_progress

# The lengths, in tokens, at which the recipe cuts a document otherwise (paper, C.4).
BUCKET_BOUNDS = (2048, 4096, 8192, 16385)
BUCKETS = ("under 2048", "2048 to 4095", "4096 to 8191", "8192 to 16384", "over 16384")
MAX_EXAMPLES = 20_000  # per stream
DEFAULT_ROWS = 256  # rows to pack
MAX_WINDOW_COUNTS = 5  # numbers of windows to try
# The fills at which decoder positions and encoder windows count as equally full.
GOOD_POSITIONS_FILL, GOOD_WINDOWS_FILL = 0.97, 0.95


def open_prepared(config: Config, directory: str | Path) -> StageData:
    """Return a prepared directory as the data of a stage that reads all its streams.

    Named and sized as the config's own stage for that recipe, where it has one.
    """
    manifest = read_manifest(directory)
    recipe = from_dict(Recipe, manifest["recipe"])
    sources = manifest["sources"]
    streams = tuple(
        stream for stream in recipe.streams if sources[stream.source]["examples"]["train"]
    )
    own = next((stage for stage in config.stages if stage.directory == recipe.name), None)
    name, windows = (own.name, own.row_windows) if own else (recipe.name, None)
    stage = StageConfig(name, 1, (), streams, row_windows=windows)
    data = replace(config.data, directory=str(directory))
    tokenizer = Tokenizer.load(Path(directory) / "tokenizer")
    return StageData(replace(config, data=data, stages=(stage,)), stage, tokenizer)


def survey(
    stage: StageData, rows: int = DEFAULT_ROWS, progress: Progress = without_progress
) -> dict[str, Any]:
    """Return figures of a stage's data by source, stream and length, and of its packed rows."""
    manifest = read_manifest(stage.directory)
    compression = stage.config.model.compression
    readers = stage.open_streams()
    shares = sum(reader.settings.share for reader in readers)
    sources: dict[str, Any] = {}
    for reader in readers:
        name = reader.settings.source
        if name not in sources:
            sources[name] = _source_figures(manifest["sources"][name], reader.source)
        sources[name]["streams"][reader.settings.kind] = _stream_figures(reader, shares, progress)
    return {
        "recipe": manifest["recipe"]["name"],
        "ratios": list(compression.all_ratios),
        "window": compression.window,
        "sources": sources,
        "packing": pack_rows(stage, rows, progress),
    }


def _stream_figures(reader: StreamReader, shares: float, progress: Progress) -> dict[str, Any]:
    tallies = tally_by_length(reader, progress)
    buckets = {bucket: tallies[bucket].to_dict() for bucket in BUCKETS if bucket in tallies}
    share = reader.settings.share / shares
    return add_tallies(tallies.values()).to_dict() | {"recipe_share": share, "buckets": buckets}


def tally_by_length(reader: StreamReader, progress: Progress) -> dict[str, Tally]:
    """Tally the examples of a stream, or MAX_EXAMPLES of them evenly spaced, by length bucket."""
    budget, model = reader.stage.budget, reader.stage.config.model
    tallies: dict[str, Tally] = defaultdict(Tally)
    for i in progress(reader.spaced(MAX_EXAMPLES), f"reading {reader.name}"):
        length = sum(len(section.tokens) for section in reader.source.shapes[i])
        bucket = BUCKETS[int(np.searchsorted(BUCKET_BOUNDS, length, "right"))]
        record = reader.record_shape(i)
        size = measure(record, model)
        tallies[bucket].add(record, size, length, budget.fits(size))
    return tallies


def pack_rows(
    stage: StageData, rows: int = DEFAULT_ROWS, progress: Progress = without_progress
) -> dict[str, Any]:
    """Return how full rows become, and what other numbers of windows would give."""
    windows = stage.budget.windows
    tried: dict[int, RowFill] = {}
    coming = [windows]
    while coming and len(tried) < MAX_WINDOW_COUNTS:
        count = coming[0]
        sized = replace(stage, stage=replace(stage.stage, row_windows=count))
        tried[count] = _measure_fill(sized, rows, progress)
        # Grows a little with the number of windows: fewer examples are too long.
        demand = tried[count].windows_in_demand
        near = (int(np.ceil(demand)), int(demand))
        coming = [count for count in near if count and count not in tried]
    best = max(tried, key=lambda count: tried[count].score)
    setting = (
        f"stages.{stage.stage.name}.row_windows" if stage.stage.row_windows else "data.row_windows"
    )
    return {
        "rows": rows,
        "positions": stage.budget.positions,
        "windows": windows,
        **tried[windows].to_dict(),
        "suggested_windows": best,
        "suggestion": f"{setting}={best}",
        "tried_windows": {str(count): tried[count].to_dict() for count in sorted(tried)},
    }


@dataclass(frozen=True)
class RowFill:
    """Measures of how full packed rows are."""

    fills: np.ndarray  # [rows, 2] filled shares of decoder positions and of encoder positions
    examples: int
    left_out: dict[str, dict[str, int]]  # examples by stream and reason
    trained_shares: dict[str, float]  # of all trained tokens, by stream
    windows_in_demand: float  # windows a row needs for its decoder positions to be full

    @property
    def positions_fill(self) -> float:
        """The mean filled share of decoder positions."""
        return float(self.fills[:, 0].mean())

    @property
    def windows_fill(self) -> float:
        """The mean filled share of encoder positions."""
        return float(self.fills[:, 1].mean())

    @property
    def score(self) -> float:
        """The fill of the emptier budget, relative to a good fill."""
        return min(self.positions_fill / GOOD_POSITIONS_FILL, self.windows_fill / GOOD_WINDOWS_FILL)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures under the names that the report on data reads."""
        return {
            "positions_fill": self.positions_fill,
            "windows_fill": self.windows_fill,
            "examples": self.examples,
            "left_out": self.left_out,
            "trained_shares": self.trained_shares,
            "windows_in_demand": self.windows_in_demand,
            "fills": self.fills.round(4).tolist(),
        }


def _measure_fill(stage: StageData, rows: int, progress: Progress) -> RowFill:
    names = [stream.name for stream in stage.stage.streams]
    mixture, budget = stage.mix_streams(), stage.budget
    planner = PackedIterator(PackedBatches(mixture))
    planned = [
        _row_sizes(mixture, planner)
        for _ in progress(range(rows), f"packing {budget.windows} windows a row")
    ]
    needs = np.array([_row_needs(sizes) for sizes in planned])
    trained: Counter[int] = Counter()
    for stream, size in (pair for sizes in planned for pair in sizes):
        trained[stream] += size.trained
    positions, encoder_positions = needs.sum(axis=0).tolist()
    demand = encoder_positions / max(1, positions)
    left_out = planner.get_state()["left_out"]
    return RowFill(
        fills=needs / (budget.positions, budget.encoder_positions),
        examples=sum(map(len, planned)),
        left_out={names[int(stream)]: counts for stream, counts in left_out.items()},
        trained_shares={name: trained[i] / max(1, trained.total()) for i, name in enumerate(names)},
        windows_in_demand=demand * budget.positions / budget.window_length,
    )


def _row_sizes(mixture: Mixture, planner: PackedIterator) -> list[tuple[int, RecordSize]]:
    """Return (stream, size) of every example of the next row."""
    return [mixture.sizes[number] for number in planner.plan_row()[0]]  # type: ignore[misc]


def _row_needs(sizes: list[tuple[int, RecordSize]]) -> tuple[int, int]:
    """Return the decoder positions and encoder positions that a row's examples take."""
    positions = sum(size.positions for _, size in sizes)
    return positions, sum(size.encoder_positions for _, size in sizes)


def sample_records(stage: StageData, count: int) -> Iterator[tuple[str, list[Span]]]:
    """Yield (stream name, record) of the first `count` records of every stream, with tokens."""
    for reader in stage.open_streams():
        records = reader.records()
        candidates = [records[i] for i in range(4 * count)]  # some documents give no record
        for record in [record for record in candidates if record][:count]:
            yield reader.name, record


def _source_figures(entry: dict[str, Any], source: PreparedSource) -> dict[str, Any]:
    """Return a source's entry of the manifest and its lengths, by powers of two."""
    copied = ("kind", "rows", "rejected", "spelled_control", "examples", "tokens")
    counts = Counter(_powers_of_two(_example_lengths(source)))
    return {
        **{name: entry[name] for name in copied},
        "lengths": {str(power): int(count) for power, count in sorted(counts.items())},
        "streams": {},
    }


def _example_lengths(source: PreparedSource) -> np.ndarray:
    if not len(source):
        return np.zeros(0)
    return np.add.reduceat(source.table[:, 0], source.starts[:-1])


def _powers_of_two(lengths: Iterable[int]) -> list[int]:
    """Return the largest power of two in every length."""
    return [1 << (int(length).bit_length() - 1) if length else 0 for length in lengths]
