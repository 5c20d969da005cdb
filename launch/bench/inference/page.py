"""HTML page with the headline figures, pictures, and a table for every part."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from launch.bench import accelerator
from launch.bench.accelerator.page import part_sections
from launch.bench.accelerator.pictures import DOTS_PER_INCH
from launch.bench.accelerator.summary import Results, measurements
from launch.bench.inference.summary import (
    ACTIONS,
    Summary,
    batch_speedups,
    lines_of,
    relative_to_text,
)
from lclm_jax.files.atomic import write_whole
from lclm_jax.reports.pages import render
from lclm_jax.reports.plots import plot_growth
from lclm_jax.reports.records import ReportError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOKENS = "tokens of context"
TEMPLATES = (Path(__file__).parent, Path(accelerator.__file__).parent)
HEADINGS = ("section", "figure", "value")


def write_page(directory: Path, summary: Summary) -> Path:
    """Write index.html and its pictures, without pictures if matplotlib is missing."""
    try:
        pictures, reason = write_pictures(directory, summary.results), ""
    except ReportError as error:
        pictures, reason = [], str(error)
    rows = [(figure.section, figure.name, figure.value) for figure in summary.figures]
    page = render(
        "inference.html.j2",
        TEMPLATES,
        machine=machine(summary),
        figures=(HEADINGS, rows),
        pictures=pictures,
        without_pictures=reason,
        parts=list(part_sections(summary.results)),
    )
    file = directory / "index.html"
    write_whole(file, page)
    return file


def machine(summary: Summary) -> str:
    """Return what was measured on, and with what shapes."""
    facts = summary.machine
    packages = ", ".join(f"{name} {number}" for name, number in facts.get("packages", {}).items())
    parts = (
        f"{summary.shapes['name']} shapes with random weights, on {facts.get('device')}",
        packages,
        facts.get("code"),
    )
    return "; ".join(part for part in parts if part)


def write_pictures(directory: Path, results: Results) -> list[tuple[str, str]]:
    """Write every picture that has measurements; return file names and captions."""
    written = []
    for name, caption, figure in draw_all(results):
        figure.savefig(directory / name, dpi=DOTS_PER_INCH)
        written.append((name, caption))
    return written


def draw_all(results: Results) -> Iterator[tuple[str, str, "Figure"]]:
    if seconds := lines_of(results, "seconds"):
        figure = plot_growth(seconds, TOKENS, ylabel="seconds")
        yield "first_token.png", "Seconds to the first token", figure
    if shares := relative_to_text(results, "seconds"):
        times = {name: {x: 1 / y for x, y in line.items()} for name, line in shares.items()}
        figure = plot_growth(times, TOKENS, ylabel="times as fast as text")
        yield "speedup.png", "First token, times as fast as from text", figure
    if peaks := lines_of(results, "peak_bytes"):
        gigabytes = {name: scaled(line, 1e-9) for name, line in peaks.items()}
        figure = plot_growth(gigabytes, TOKENS, ylabel="GB")
        yield "memory.png", "Peak memory of the first token", figure
    if batches := batch_speedups(results):
        lines = {"measured": batches, "in proportion": {n: float(n) for n in batches}}
        figure = plot_growth(lines, "prompts at once", ylabel="answers per second, relative to one")
        yield "batches.png", "Answers to several prompts at once", figure
    if long := long_text_lines(results):
        figure = plot_growth(long, "tokens", ylabel="GB")
        yield "long_text.png", "Peak memory of compressing a long text", figure
    if stores := store_lines(results):
        figure = plot_growth(stores, "windows in the store", ylabel="seconds")
        yield "store.png", "A store's actions", figure


def scaled(line: dict[int, float], factor: float) -> dict[int, float]:
    return {x: factor * y for x, y in line.items()}


def long_text_lines(results: Results) -> dict[str, dict[int, float]]:
    """Return peak memory and the size of the latents in GB: {name: {tokens: GB}}."""
    lines = {}
    for part, name in {"compress": "peak of compress", "store": "peak of Store.add_text"}.items():
        points = measurements(results, f"long_text.{part}").values()
        peaks = {point["tokens"]: point["peak_bytes"] for point in points if point["peak_bytes"]}
        lines[name] = scaled(peaks, 1e-9)
        lines["bytes of the latents"] = {
            point["tokens"]: 1e-9 * point["latent_bytes"] for point in points
        }
    return {name: line for name, line in lines.items() if line}


def store_lines(results: Results) -> dict[str, dict[int, float]]:
    points = list(measurements(results, "store").values())
    return {
        action: {point["windows"]: point[f"{action}_seconds"] for point in points}
        for action in ACTIONS
        if points
    }
