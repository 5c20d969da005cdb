"""The pictures of a run's report: matplotlib figures, each small enough to be read on a phone, and their form as data URIs.

matplotlib is an optional extra, so it is imported where a figure is made; pyplot and its global state are not used.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lclm_jax.reports.findings import PARTS, ReportError, total_flops

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by colour-blind readers; one colour per view wherever it appears.
VIEWS = {"latents": "#0072B2", "text": "#009E73", "nothing": "#999999"}
VIEW_NAMES = {"latents": "from latents", "text": "from full text", "nothing": "from nothing"}
PART_COLOURS = ("#E69F00", "#CC79A7", "#56B4E9")
STREAMS = ("#D55E00", "#56B4E9", "#CC79A7", "#E69F00", "#333333", "#7A5C00")
DASHES = ("-", "--", "-.", ":")
FONT = 9


def as_data_uri(figure: "Figure") -> str:
    """The figure as SVG inside a URI, so that a page needs no second file."""
    picture = io.BytesIO()
    figure.savefig(picture, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(picture.getvalue()).decode()


def plot_proportions(
    groups: Mapping[str, Mapping[str, Mapping[str, float]]], ylabel: str
) -> "Figure":
    """Bars of the three views with 95 % intervals: {group: {view: {"value", "low", "high"}}}."""
    figure, axes = new_figure(5.6, 3.4)
    for i, (view, colour) in enumerate(VIEWS.items()):
        shares = [group[view] for group in groups.values()]
        places = [place + 0.27 * (i - 1) for place in range(len(groups))]
        values = [share["value"] for share in shares]
        errors = [
            [max(0.0, share["value"] - share["low"]) for share in shares],
            [max(0.0, share["high"] - share["value"]) for share in shares],
        ]
        axes.bar(places, values, width=0.25, color=colour, label=VIEW_NAMES[view])
        axes.errorbar(
            places, values, yerr=errors, fmt="none", ecolor="#222222", elinewidth=1, capsize=2.5
        )
        for place, share in zip(places, shares, strict=True):
            if math.isfinite(share["value"]):
                height = max(share["high"], share["value"]) + 0.015
                axes.text(
                    place,
                    height,
                    f"{100 * share['value']:.0f}",
                    ha="center",
                    va="bottom",
                    fontsize=8,
                    color="#222222",
                )
    axes.set_xticks(range(len(groups)), list(groups), fontsize=FONT)
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.set_ylabel(ylabel, fontsize=FONT)
    percent_axis(axes, top=1.1)
    axes.grid(visible=False, axis="x")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=FONT)
    return figure


def plot_ratios(lines: Mapping[str, Mapping[int, Mapping[str, float]]], ylabel: str) -> "Figure":
    """Shares with 95 % intervals over tokens per latent, on a logarithmic axis: {name: {ratio: {"value", "low", "high"}}}."""
    figure, axes = new_figure(5.6, 3.4)
    for (name, line), colour in zip(lines.items(), STREAMS, strict=False):
        values = [share["value"] for share in line.values()]
        low, high = (
            [abs(share[bound] - share["value"]) for share in line.values()]
            for bound in ("low", "high")
        )
        axes.errorbar(
            list(line),
            values,
            yerr=[low, high],
            color=colour,
            marker="o",
            markersize=4,
            capsize=2.5,
            label=name,
        )
    ratios = sorted({ratio for line in lines.values() for ratio in line})
    axes.set_xscale("log")
    axes.set_xticks(ratios, [str(ratio) for ratio in ratios], fontsize=FONT)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("tokens per latent", fontsize=FONT)
    axes.set_ylabel(ylabel, fontsize=FONT)
    percent_axis(axes, top=1.05)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=FONT)
    return figure


def plot_cost(entries: Sequence[Mapping[str, Any]], key: str, label: str) -> "Figure":
    """One cost against context length, reading the text itself and reading latents, both axes logarithmic."""
    figure, axes = new_figure(3.6, 3.3)
    tokens = [entry["tokens"] for entry in entries]
    for side, name, view, mark in (
        ("plain", "full text", "text", "s"),
        ("compressed", "latents", "latents", "o"),
    ):
        values = [
            total_flops(entry[side]) if key == "flops" else entry[side][key] for entry in entries
        ]
        axes.plot(
            tokens, values, color=VIEWS[view], marker=mark, markersize=4, linewidth=1.6, label=name
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    chosen = _about_five(tokens)
    axes.set_xticks(chosen, [short_count(count) for count in chosen], fontsize=FONT)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("context length, tokens", fontsize=FONT)
    axes.set_title(label, loc="left", fontsize=10)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=FONT)
    return figure


def plot_flop_parts(entries: Sequence[Mapping[str, Any]]) -> "Figure":
    """Who spends the FLOPs of reading latents, as a share of reading the text; a linear axis, so that parts add up to the eye."""
    figure, axes = new_figure(3.6, 3.3)
    chosen = _about_five(entries)
    bottoms = [0.0] * len(chosen)
    for part, colour in zip(PARTS, PART_COLOURS, strict=True):
        shares = [
            entry["compressed"][f"{part}_flops"] / total_flops(entry["plain"]) for entry in chosen
        ]
        axes.bar(range(len(chosen)), shares, bottom=bottoms, width=0.7, color=colour, label=part)
        bottoms = [bottom + share for bottom, share in zip(bottoms, shares, strict=True)]
    axes.axhline(1.0, color=VIEWS["text"], linewidth=1.6, label="full text")
    axes.set_ylim(0, 1.08 * max([1.0, *bottoms]))
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set_xticks(
        range(len(chosen)), [short_count(entry["tokens"]) for entry in chosen], fontsize=FONT
    )
    axes.set_xlabel("context length, tokens", fontsize=FONT)
    axes.set_title("FLOPs of latents against full text", loc="left", fontsize=10)
    axes.grid(visible=False, axis="x")
    figure.legend(
        loc="outside lower center",
        ncols=4,
        frameon=False,
        handlelength=1,
        columnspacing=0.8,
        fontsize=8,
    )
    return figure


def plot_shares(groups: Mapping[str, Mapping[str, float]]) -> "Figure":
    """Horizontal bars of several sets of shares side by side: {set: {name: share}}."""
    names = list(next(iter(groups.values())))
    figure, axes = new_figure(5.6, 0.9 + 0.42 * len(names))
    for i, (label, shares) in enumerate(groups.items()):
        places = [place + 0.36 * (i - 0.5) for place in range(len(names))]
        colour = (VIEWS["nothing"], VIEWS["latents"])[i % 2]
        axes.barh(places, [shares[name] for name in names], height=0.34, color=colour, label=label)
    axes.set_yticks(range(len(names)), names, fontsize=FONT)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=FONT)
    return figure


def plot_lengths(counts: Mapping[int, int]) -> "Figure":
    """How many examples have each length, in bins that double: {first length of the bin: examples}."""
    figure, axes = new_figure(3.2, 2.4)
    lengths = sorted(counts)
    axes.bar(
        range(len(lengths)),
        [counts[length] for length in lengths],
        width=0.9,
        color=VIEWS["latents"],
    )
    chosen = _about_five(range(len(lengths)))
    axes.set_xticks(chosen, [short_count(lengths[i]) for i in chosen], fontsize=FONT)
    axes.set_xlabel("tokens, at least", fontsize=FONT)
    axes.grid(visible=False, axis="x")
    return figure


def plot_fills(fills: Mapping[str, Sequence[float]]) -> "Figure":
    """Histograms of the fill of rows, one above the other: {budget: share in use of every row}."""
    figure, axes = new_figure(5.6, 3.0)
    lowest = min(0.9, *(min(values) for values in fills.values()))
    edges = [lowest + (1.0 - lowest) * i / 40 for i in range(41)]
    for (label, values), colour in zip(
        fills.items(), (VIEWS["text"], VIEWS["latents"]), strict=False
    ):
        axes.hist(values, bins=edges, color=colour, alpha=0.65, label=label)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set_xlabel("in use", fontsize=FONT)
    axes.set_ylabel("rows", fontsize=FONT)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=FONT)
    return figure


def plot_growth(lines: Mapping[str, Mapping[int, float]], xlabel: str, ylabel: str) -> "Figure":
    """Quantities over a size, both axes logarithmic: {name: {size: quantity}}."""
    figure, axes = new_figure(5.6, 3.8)
    for (name, line), colour in zip(lines.items(), (*VIEWS.values(), *STREAMS), strict=False):
        axes.plot(
            list(line),
            list(line.values()),
            color=colour,
            marker="o",
            markersize=4,
            linewidth=1.6,
            label=name,
        )
    sizes = sorted({size for line in lines.values() for size in line})
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(sizes, [short_count(size) for size in sizes], fontsize=FONT)
    axes.set_xticks([], minor=True)
    axes.set_xlabel(xlabel, fontsize=FONT)
    axes.set_ylabel(ylabel, fontsize=FONT)
    figure.legend(loc="outside lower center", frameon=False, fontsize=FONT)
    return figure


def plot_memory(figures: Mapping[str, Any]) -> "Figure":
    """What a program takes of a chip beside what the chip has, in GiB."""
    parts = {"arguments": "argument_bytes", "temporaries": "temp_bytes", "peak": "peak_bytes"}
    figure, axes = new_figure(5.6, 1.9)
    axes.barh(
        range(len(parts)),
        [figures[key] / 2**30 for key in parts.values()],
        height=0.6,
        color=VIEWS["latents"],
    )
    axes.axvline(
        figures["hbm_bytes"] / 2**30, color=STREAMS[0], linewidth=1.6, label="memory of a chip"
    )
    axes.set_yticks(range(len(parts)), list(parts), fontsize=FONT)
    axes.invert_yaxis()
    axes.set_xlabel("GiB", fontsize=FONT)
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside lower center", frameon=False, fontsize=FONT)
    return figure


def short_count(count: int) -> str:
    """A context length in a few characters, thousands of 1024 as is the custom where it is a multiple of that.

    >>> [short_count(n) for n in (96, 1024, 131072, 1048576, 1500)]
    ['96', '1k', '128k', '1M', '1.5k']
    """
    base = 1000 if count % 1024 else 1024
    for power, unit in ((2, "M"), (1, "k")):
        if count >= base**power:
            return f"{count / base**power:.3g}{unit}"
    return f"{count}"


def _about_five(items: Sequence[Any]) -> Sequence[Any]:
    """Every so many of the items, the last one included."""
    every = max(1, math.ceil(len(items) / 5))
    return items[::-1][::every][::-1]


def new_figure(width: float, height: float) -> tuple["Figure", "Axes"]:
    """An empty figure, inches wide and high, with our ink."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ReportError(
            "the report's plots need matplotlib: pip install 'lclm_jax[demo]'"
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#888888")
    axes.tick_params(labelsize=9, color="#888888")
    axes.grid(color="#E4E4E4", linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def percent_axis(axes: "Axes", top: float = 1.0):
    axes.set_ylim(0, top)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0], ["0 %", "25 %", "50 %", "75 %", "100 %"])
