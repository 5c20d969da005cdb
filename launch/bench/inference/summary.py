"""Headline figures, on the terminal and in inference.json."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from rich.table import Table

from launch.bench.accelerator.parts import results_directory
from launch.bench.accelerator.record import read_results
from launch.bench.accelerator.summary import Results, describe_parts, measurements
from launch.bench.inference import agent, questions
from launch.bench.inference.parts import MACHINE, PARTS
from launch.bench.inference.sizes import Sizes
from lclm_jax.cli import show_table
from lclm_jax.files.atomic import write_whole
from lclm_jax.reports.formats import byte_count, number, short_count

TEXT, ONLY = "as text", "16x, model of one ratio"
# Ways to read contexts, by their parts.
READINGS = {
    "first_token.16": "16x",
    "first_token.8": "8x",
    "first_token.4": "4x",
    "first_token.only_16": ONLY,
    "first_token.text": TEXT,
}
ACTIONS = ("open", "get", "add", "ls", "gc")  # of a store
# Growth with this exponent or a smaller one is called constant, from the other on linear.
CONSTANT, LINEAR = 0.2, 0.8


@dataclass(frozen=True)
class Figure:
    """A headline figure as text, and what it says."""

    section: str
    name: str
    value: str


@dataclass(frozen=True)
class Summary:
    """Results of all parts, with the figures that people look for."""

    machine: dict[str, Any]
    shapes: dict[str, Any]
    results: Results
    figures: list[Figure]

    def to_dict(self) -> dict[str, Any]:
        parts = describe_parts(self.results)
        return {**asdict(self), "parts": parts}


def write_summary(directory: Path, sizes: Sizes) -> Summary:
    """Write inference.json, and return what it holds."""
    files = {name: results_directory(directory) / f"{name}.json" for name in PARTS}
    results = {name: read_results(file) for name, file in files.items() if file.exists()}
    file = directory / MACHINE
    machine = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    summary = Summary(machine, asdict(sizes), results, list(find_figures(results)))
    write_whole(directory / "inference.json", json.dumps(summary.to_dict(), indent=1))
    return summary


def find_figures(results: Results) -> Iterator[Figure]:
    """Yield the headline figures of every section that has measurements."""
    yield from first_token_figures(results)
    yield from saving(results, "questions", questions.ENCODED, questions.STORED)
    yield from saving(results, "questions", questions.ENCODED, questions.CACHED)
    yield from saving(results, "agent", agent.ALL, agent.NEW)
    for count, speedup in list(batch_speedups(results).items())[1:]:
        yield Figure("batches", f"answers per second, {count} prompts", f"{speedup:.2f}x one")
    yield from long_text_figures(results)
    yield from store_figures(results)


def lines_of(results: Results, field: str) -> dict[str, dict[int, float]]:
    """Return a field of first tokens: {way to read: {tokens of context: value}}."""
    lines = {}
    for part, name in READINGS.items():
        points = sorted(measurements(results, part).values(), key=itemgetter("tokens"))
        lines[name] = {point["tokens"]: point[field] for point in points if point[field]}
    return {name: line for name, line in lines.items() if line}


def relative_to_text(results: Results, field: str) -> dict[str, dict[int, float]]:
    """Return a field of first tokens divided by that of text: {way: {tokens: ...}}."""
    lines = lines_of(results, field)
    text = lines.pop(TEXT, {})
    shares = {
        name: {tokens: line[tokens] / text[tokens] for tokens in line if tokens in text}
        for name, line in lines.items()
    }
    return {name: line for name, line in shares.items() if line}


def first_token_figures(results: Results) -> Iterator[Figure]:
    """Yield each way beside text, at the longest context of both, and its longest context."""
    speeds = relative_to_text(results, "decode_tokens_per_second")
    peaks = relative_to_text(results, "peak_bytes")
    for name, line in relative_to_text(results, "seconds").items():
        tokens = max(line)
        value = f"{1 / line[tokens]:.1f}x as fast as text; decoding {speeds[name][tokens]:.1f}x"
        if name in peaks:
            value += f"; peak memory {peaks[name][tokens]:.2f}x"
        yield Figure("first token", f"after {short_count(tokens)} tokens, {name}", value)
    for name, line in lines_of(results, "seconds").items():
        tokens = max(line)
        value = f"{line[tokens]:.3g} s to the first token"
        yield Figure("first token", f"after {short_count(tokens)} tokens, {name}", value)


def saving(results: Results, section: str, slow: str, fast: str) -> Iterator[Figure]:
    """Yield how much sooner all answers come in one way than in another."""
    known = measurements(results, section)
    if slow in known and fast in known:
        ratio = known[slow]["seconds"] / known[fast]["seconds"]
        yield Figure(section, fast, f"{ratio:.1f}x as fast as {slow}")


def batch_speedups(results: Results) -> dict[int, float]:
    """Return the answers per second relative to those of one prompt: {prompts: ...}."""
    batches = list(measurements(results, "batches").values())
    speeds = {batch["prompts"]: batch["answers_per_second"] for batch in batches}
    return {count: speed / speeds[1] for count, speed in speeds.items() if 1 in speeds}


def long_text_figures(results: Results) -> Iterator[Figure]:
    for part in ("long_text.compress", "long_text.store"):
        points = list(measurements(results, part).values())
        if not points:
            continue
        longest, action = points[-1], part.partition(".")[2]
        what = f"{action}: {longest['tokens']:,} tokens"
        yield Figure("long text", what, f"{longest['tokens_per_second']:,.0f} tokens/s")
        if longest["peak_bytes"]:
            peaks = [byte_count(point["peak_bytes"]) for point in (points[0], longest)]
            size = byte_count(longest["latent_bytes"])
            value = f"{peaks[1]}; {peaks[0]} for {points[0]['tokens']:,}; its latents {size}"
            yield Figure("long text", f"{what}, peak memory", value)


def store_figures(results: Results) -> Iterator[Figure]:
    """Yield the time of each action in the smallest and the largest store, and its growth."""
    points = list(measurements(results, "store").values())
    if len(points) < 2:
        return
    first, last = points[0], points[-1]
    for action in ACTIONS:
        low, high = (point[f"{action}_seconds"] for point in (first, last))
        exponent = math.log(high / low) / math.log(last["windows"] / first["windows"])
        name = f"{action}, {first['windows']:,} and {last['windows']:,} windows"
        value = f"{number(1000 * low)} and {number(1000 * high)} ms: {describe_growth(exponent)}"
        yield Figure("store", name, value)


def describe_growth(exponent: float) -> str:
    if exponent <= CONSTANT:
        return "constant"
    return "linear" if exponent >= LINEAR else f"grows as windows^{exponent:.2f}"


def show_figures(summary: Summary):
    """Print the headline figures, and what failed or was left out."""
    table = Table("section", "figure", "value")
    for figure in summary.figures:
        table.add_row(figure.section, figure.name, figure.value)
    for name, part in describe_parts(summary.results).items():
        for kind in ("failed", "skipped"):
            for what, why in part[kind].items():
                table.add_row(name, what, f"{kind}: {why}"[:90])
    show_table(table)
