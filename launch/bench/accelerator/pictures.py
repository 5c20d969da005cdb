"""Pictures of the page as PNG files; drawing them imports matplotlib."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launch.bench.accelerator import summary as figures
from launch.bench.accelerator.summary import PAPER, PAPER_TEXT, RATIO, Results, Summary
from lclm_jax.reports.formats import short_count
from lclm_jax.reports.plots import (
    FONT_SIZE,
    STREAM_COLOURS,
    VIEW_COLOURS,
    new_figure,
    percent_axis,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Lines = Mapping[str, Mapping[int, float]]  # name -> x -> y
DOTS_PER_INCH = 150
COLOURS = (*VIEW_COLOURS.values(), *STREAM_COLOURS)


def write_pictures(directory: Path, summary: Summary) -> list[tuple[str, str]]:
    """Write every picture that has measurements; return file names and captions."""
    written = []
    for name, caption, figure in draw_all(summary.results):
        figure.savefig(directory / name, dpi=DOTS_PER_INCH)
        written.append((name, caption))
    return written


def draw_all(results: Results) -> Iterator[tuple[str, str, "Figure"]]:
    tokens = "tokens of context"
    if seconds := first_token_lines(results):
        figure = draw_lines(seconds, tokens, "seconds")
        yield "first_token.png", "Seconds to the first token", figure
    if memory := memory_lines(results):
        yield "memory.png", "Peak memory", draw_lines(memory, tokens, "GB")
    if shares := training_shares(results):
        figure = draw_bars(shares, "share of the peak, %", goal=45.0)
        yield "training.png", "Training: model FLOPs a second, as a share of the peak", figure
    if ratios := figures.torch_ratios(results):
        figure = draw_bars(ratios, "times PyTorch's speed", goal=1.3)
        yield "beside_torch.png", "Beside transformers' Qwen3 in PyTorch", figure
    if decoding := figures.decoding_shares(results):
        percents = {name: 100 * share for name, share in decoding.items()}
        figure = draw_bars(percents, "share of memory speed, %", goal=60.0)
        yield "decoding.png", "Decoding: bytes that must be read, as a share of the peak", figure
    curve = figures.measurements(results, "learning").get("reconstruction")
    if curve:
        yield "learning.png", "Held-out passages written back", draw_curve(curve["points"])


def first_token_lines(results: Results) -> dict[str, dict[int, float]]:
    peak, lengths = figures.measured_flops(results), figures.compressed(results)
    lines = {f"{RATIO}x": {length["tokens"]: length["seconds"] for length in lengths}}
    if peak:
        lines[f"{RATIO}x, FLOPs at the measured peak"] = {
            length["tokens"]: length["flops"] / peak for length in lengths
        }
    lines["as text"] = {length["tokens"]: length["seconds"] for length in figures.plain(results)}
    return with_paper(lines, 0)


def memory_lines(results: Results) -> dict[str, dict[int, float]]:
    def memory(lengths: Sequence[Mapping]) -> dict[int, float]:
        measured = [length for length in lengths if length["peak_bytes"]]
        return {length["tokens"]: length["peak_bytes"] / 1e9 for length in measured}

    # Peak memory is that of the process, so it counts only for the longest length so far.
    ascending, longest = [], 0
    for length in figures.measurements(results, "first_token.compressed").values():
        if length["ratio"] == RATIO and length["tokens"] > longest:
            ascending.append(length)
            longest = length["tokens"]
    lines = {f"{RATIO}x": memory(ascending), "as text": memory(figures.plain(results))}
    return with_paper(lines, 1, 1e-9)


def with_paper(
    lines: dict[str, dict[int, float]], index: int, factor: float = 1.0
) -> dict[str, dict[int, float]]:
    """Return the lines with points, and the paper's if a published length was measured."""
    measured = {tokens for line in lines.values() for tokens in line}
    if measured & PAPER.keys():
        for name, values in ((f"paper, H200, {RATIO}x", PAPER), ("paper, as text", PAPER_TEXT)):
            lines[name] = {tokens: factor * pair[index] for tokens, pair in values.items()}
    return {name: line for name, line in lines.items() if line} if measured else {}


def training_shares(results: Results) -> dict[str, float]:
    steps = [best for number in range(3) if (best := figures.best_step(results, number))]
    shares = {name: figures.mfu(results, step) for name, step in steps}
    return {name: 100 * share for name, share in shares.items() if share is not None}


def draw_lines(lines: Lines, xlabel: str, ylabel: str) -> "Figure":
    """Draw lines on logarithmic axes, those of the paper and of FLOPs dashed."""
    figure, axes = new_figure(6.4, 4.2)
    for (name, line), colour in zip(lines.items(), COLOURS, strict=False):
        style = "--" if "paper" in name or "FLOPs" in name else "-"
        points = sorted(line.items())
        axes.plot(*zip(*points, strict=True), style, color=colour, marker="o", ms=4, label=name)
    ticks = sorted({x for line in lines.values() for x in line})
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(ticks, [short_count(x) for x in ticks], fontsize=FONT_SIZE)
    axes.set_xticks([], minor=True)
    axes.set_xlabel(xlabel, fontsize=FONT_SIZE)
    axes.set_ylabel(ylabel, fontsize=FONT_SIZE)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=FONT_SIZE)
    return figure


def draw_bars(values: Mapping[str, float], xlabel: str, goal: float) -> "Figure":
    figure, axes = new_figure(6.4, 1.1 + 0.4 * len(values))
    axes.barh(range(len(values)), list(values.values()), height=0.6, color=VIEW_COLOURS["latents"])
    axes.axvline(goal, color=STREAM_COLOURS[0], linewidth=1.6, label=f"goal: {goal:g}")
    axes.set_yticks(range(len(values)), list(values), fontsize=FONT_SIZE)
    axes.invert_yaxis()
    axes.set_xlabel(xlabel, fontsize=FONT_SIZE)
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside lower center", frameon=False, fontsize=FONT_SIZE)
    return figure


def draw_curve(points: Sequence[Mapping]) -> "Figure":
    figure, axes = new_figure(6.4, 3.6)
    minutes = [point["minutes"] for point in points]
    names = {"from latents": "latents", "from full text": "text", "from nothing": "nothing"}
    for name, view in names.items():
        values = [point[f"accuracy_{view}"] for point in points]
        axes.plot(minutes, values, color=VIEW_COLOURS[view], marker="o", ms=3, label=name)
    axes.set_xlabel("minutes of training", fontsize=FONT_SIZE)
    axes.set_ylabel("tokens right", fontsize=FONT_SIZE)
    percent_axis(axes)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=FONT_SIZE)
    return figure
