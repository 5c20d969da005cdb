"""What prepared data look like under a config: lengths, what is compressed and trained on, and how full rows become.

Planned from lengths alone, as training plans them; the numbers behind `launch.inspect_data`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lclm_jax.config import Config, Recipe, StageConfig
from lclm_jax.config.values import from_dict
from lclm_jax.data.loading.sources import Prepared, read_manifest
from lclm_jax.data.loading.streams import (
    Order,
    PackedBatches,
    PackedIterator,
    budget,
    open_sources,
    record_maker,
    stage_order,
    stream_records,
)
from lclm_jax.data.prepare.prepare import Progress, silent
from lclm_jax.data.records.spans import Context, Plain, Size, Span, measure
from lclm_jax.data.text.tokenizer import Tokenizer

BOUNDS = (
    2048,
    4096,
    8192,
    16385,
)  # tokens at which the recipe treats a document otherwise (paper, C.4)
BUCKETS = ("under 2048", "2048 to 4095", "4096 to 8191", "8192 to 16384", "over 16384")
MOST = 20_000  # examples of a stream that are looked at
ROWS = 256  # rows that are packed
TRIES = 5  # numbers of windows that are tried


@dataclass
class Tally:
    """Sums and shares over the examples of one stream and length."""

    documents: int = 0
    before: int = 0  # tokens as written
    positions: int = 0  # decoder positions
    read: int = 0  # encoder positions
    compressed: int = 0  # tokens read as latents
    trained: int = 0
    too_long: int = 0  # examples that fit no row
    too_short: int = 0  # documents that give no record
    pairs: Counter[int] = field(default_factory=Counter)
    first_wrapped: list[float] = field(
        default_factory=list
    )  # share of all compressed tokens, where there are several segments
    last_plain: list[float] = field(default_factory=list)  # share of all trained tokens
    shortest: int | None = None  # tokens of the shortest segment

    def add(self, record: Sequence[Span], size: Size, length: int, fits: bool):
        self.documents += 1
        self.before += length
        if not record:
            self.too_short += 1
            return
        self.positions += size.positions
        self.read += size.read
        self.compressed += size.compressed
        self.trained += size.trained
        self.too_long += not fits
        wrapped = [len(span.tokens) for span in record if isinstance(span, Context)]
        plain = [len(span.tokens) for span in record if isinstance(span, Plain) and span.trained]
        self.pairs[len(wrapped)] += 1
        if len(wrapped) > 1 and sum(wrapped):
            self.first_wrapped.append(wrapped[0] / sum(wrapped))
        if len(plain) > 1 and sum(plain):
            self.last_plain.append(plain[-1] / sum(plain))
        if wrapped or plain:
            self.shortest = min(
                [*wrapped, *plain, *([] if self.shortest is None else [self.shortest])]
            )

    def figures(self) -> dict[str, Any]:
        return {
            "documents": self.documents,
            "tokens_before": self.before,
            "tokens_after": self.positions,
            "encoder_tokens": self.read,
            "compressed_tokens": self.compressed,
            "trainable_tokens": self.trained,
            "too_long": self.too_long,
            "too_short": self.too_short,
            "pairs": {str(count): self.pairs[count] for count in sorted(self.pairs)},
            "first_wrapped_share": _spread(self.first_wrapped),
            "last_plain_share": _spread(self.last_plain),
            "shortest_segment": self.shortest,
        }


def open_prepared(config: Config, directory: str | Path) -> tuple[Config, StageConfig, Tokenizer]:
    """A config of one stage, which reads this directory as the config's own stage of that recipe would."""
    manifest = read_manifest(directory)
    recipe = from_dict(Recipe, manifest["recipe"])
    streams = tuple(
        one for one in recipe.streams if manifest["sources"][one.source]["examples"]["train"]
    )
    reader = next((stage for stage in config.stages if stage.directory == recipe.name), None)
    stage = StageConfig(
        reader.name if reader else recipe.name, 1, (), streams, windows=reader and reader.windows
    )
    config = replace(config, data=replace(config.data, directory=str(directory)), stages=(stage,))
    return config, stage, Tokenizer.load(Path(directory) / "tokenizer")


def survey(
    config: Config,
    stage: StageConfig,
    tokenizer: Tokenizer,
    rows: int = ROWS,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Figures of the data of a stage, by source, stream and length of the example, and of its packed rows."""
    manifest = read_manifest(Path(config.data.directory) / stage.directory)
    opened = open_sources(config, stage, tokenizer, "train")
    sources: dict[str, Any] = {}
    for number, (stream, source) in enumerate(zip(stage.streams, opened, strict=True)):
        tallies = tally(config, stage, number, source, tokenizer, progress)
        total = _sum(tallies.values())
        said = sources.setdefault(
            stream.source, _source(manifest["sources"][stream.source], source)
        )
        said["streams"][stream.kind] = total.figures() | {
            "recipe_share": stream.share / sum(one.share for one in stage.streams),
            "buckets": {
                bucket: tallies[bucket].figures() for bucket in BUCKETS if bucket in tallies
            },
        }
    return {
        "recipe": manifest["recipe"]["name"],
        "ratios": list(config.model.compression.all_ratios),
        "window": config.model.compression.window,
        "sources": sources,
        "packing": pack_rows(config, stage, tokenizer, rows, progress),
    }


def tally(
    config: Config,
    stage: StageConfig,
    number: int,
    source: Prepared,
    tokenizer: Tokenizer,
    progress: Progress,
) -> dict[str, Tally]:
    """Every example of a stream once, or MOST of them evenly spaced, by its length."""
    room, make = budget(config, stage), record_maker(config, stage, number, source, tokenizer)
    chosen = range(0, len(source), -(-len(source) // MOST))
    tallies: dict[str, Tally] = defaultdict(Tally)
    for i in progress(chosen, f"reading {stage.streams[number].name}"):
        example = source.shapes[i]
        record = make(example, np.random.default_rng([config.data.seed, i]))
        length = sum(len(stretch.tokens) for stretch in example)
        size = measure(record, config.model)
        tallies[BUCKETS[int(np.searchsorted(BOUNDS, length, "right"))]].add(
            record, size, length, room.holds(size)
        )
    return tallies


def pack_rows(
    config: Config,
    stage: StageConfig,
    tokenizer: Tokenizer,
    rows: int = ROWS,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Fill of both budgets over some rows, and what other numbers of windows would give."""
    windows = stage.windows or config.data.windows
    tried: dict[int, dict[str, Any]] = {}
    coming = [windows]
    while coming and len(tried) < TRIES:
        number = coming[0]
        order = stage_order(config, replace(stage, windows=number), tokenizer)
        tried[number] = _pack(
            config, order, [stream.name for stream in stage.streams], rows, progress
        )
        demand = tried[number][
            "windows_in_demand"
        ]  # grows a little with the number: fewer examples are too long
        coming = [
            near for near in (int(np.ceil(demand)), int(demand)) if near and near not in tried
        ]
    best = max(
        tried,
        key=lambda windows: min(
            tried[windows]["positions_fill"] / 0.97, tried[windows]["windows_fill"] / 0.95
        ),
    )
    return {
        "rows": rows,
        "positions": config.data.positions,
        "windows": windows,
        **tried[windows],
        "suggested_windows": best,
        "suggestion": f"stages.{stage.name}.windows={best}"
        if stage.windows
        else f"data.windows={best}",
        "tried_windows": {str(number): tried[number] for number in sorted(tried)},
    }


def _pack(
    config: Config, order: Order, streams: Sequence[str], rows: int, progress: Progress
) -> dict[str, Any]:
    """How full rows become, the shares of what is trained on in them, and how many windows their examples ask for."""
    room = order.budget
    planner = PackedIterator(PackedBatches(order, config))
    fills: list[tuple[float, float]] = []
    sizes: list[Size] = []
    trained: Counter[int] = Counter()
    for _ in progress(range(rows), f"packing {room.windows} windows a row"):
        row: list[tuple[int, Size]] = [order.sizes[number] for number in planner.plan_row()[0]]  # type: ignore[misc]
        positions, read = sum(size.positions for _, size in row), sum(size.read for _, size in row)
        fills.append((positions / room.positions, read / (room.windows * room.window_length)))
        for stream, size in row:
            trained[stream] += size.trained
            sizes.append(size)
    by_budget = np.array(fills)
    demand = sum(size.read for size in sizes) / max(1, sum(size.positions for size in sizes))
    return {
        "positions_fill": float(by_budget[:, 0].mean()),
        "windows_fill": float(by_budget[:, 1].mean()),
        "examples": len(sizes),
        "left_out": {
            streams[int(number)]: reasons
            for number, reasons in planner.get_state()["left_out"].items()
        },
        "trained_shares": {
            name: trained[i] / max(1, trained.total()) for i, name in enumerate(streams)
        },
        "windows_in_demand": demand * room.positions / room.window_length,
        "fills": by_budget.round(4).tolist(),
    }


def sample(
    config: Config, stage: StageConfig, tokenizer: Tokenizer, count: int
) -> Iterator[tuple[str, list[Span]]]:
    """The first records of every stream, with their tokens."""
    for number, (stream, source) in enumerate(
        zip(stage.streams, open_sources(config, stage, tokenizer, "train"), strict=True)
    ):
        records = stream_records(config, stage, number, source, source, tokenizer)
        made = [record for record in (records[i] for i in range(4 * count)) if record]
        yield from ((stream.name, record) for record in made[:count])


def _source(told: dict[str, Any], source: Prepared) -> dict[str, Any]:
    lengths = (
        np.add.reduceat(source.table[:, 0], source.starts[:-1]) if len(source) else np.zeros(0)
    )
    return {
        name: told[name]
        for name in ("kind", "rows", "rejected", "spelled_control", "examples", "tokens")
    } | {
        "lengths": {
            str(power): int(count) for power, count in sorted(Counter(_powers(lengths)).items())
        },
        "streams": {},
    }


def _powers(lengths: Iterable[int]) -> list[int]:
    """The largest power of two in every length."""
    return [1 << (int(length).bit_length() - 1) if length else 0 for length in lengths]


def _sum(tallies: Iterable[Tally]) -> Tally:
    total = Tally()
    for one in tallies:
        for name in (
            "documents",
            "before",
            "positions",
            "read",
            "compressed",
            "trained",
            "too_long",
            "too_short",
        ):
            setattr(total, name, getattr(total, name) + getattr(one, name))
        total.pairs.update(one.pairs)
        total.first_wrapped += one.first_wrapped
        total.last_plain += one.last_plain
        total.shortest = min(
            (x for x in (total.shortest, one.shortest) if x is not None), default=None
        )
    return total


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    array = np.array(values)
    return {"min": float(array.min()), "median": float(np.median(array)), "max": float(array.max())}
