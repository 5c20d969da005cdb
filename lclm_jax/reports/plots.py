"""Pictures of the reports, as matplotlib figures small enough to read on a phone.

matplotlib is an optional dependency, so it is imported where a figure is made; pyplot and its
global state are not used.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from lclm_jax.reports.figures import (
    MAX_CURVE_POINTS,
    Curve,
    Curves,
    Panel,
    finite_means,
    highest_mean,
)
from lclm_jax.reports.formats import short_count, short_number
from lclm_jax.reports.records import COMPONENTS, ReadingCost, ReportError, Run, Share
from lclm_jax.reports.statements import VIEW_NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart.
VIEW_COLOURS = {"latents": "#0072B2", "text": "#009E73", "nothing": "#999999"}
COMPONENT_COLOURS = {"encoder": "#E69F00", "adapter": "#CC79A7", "decoder": "#56B4E9"}
STREAM_COLOURS = ("#D55E00", "#56B4E9", "#CC79A7", "#E69F00", "#333333", "#7A5C00")
STREAM_DASHES = ("-", "--", "-.", ":")
CURVE_COLOURS = {
    **VIEW_COLOURS,
    **COMPONENT_COLOURS,
    "full text": VIEW_COLOURS["text"],
    "all": "#333333",
}
OTHER_CURVE_COLOURS = (VIEW_COLOURS["latents"], STREAM_COLOURS[0], VIEW_COLOURS["text"])
SMALL, MEDIUM, LARGE = (3.6, 3.3), (5.6, 3.4), (5.6, 4.2)  # inches
FONT_SIZE = 9
SHORT_SEGMENT = 3  # points below which a segment is drawn with markers
MAX_MARKERS = 40  # points of a curve that are marked


def new_figure(width: float, height: float) -> tuple["Figure", "Axes"]:
    """Return an empty figure of this size in inches. Raises ReportError without matplotlib."""
    figure, (axes,) = new_panels(width, height, (1,))
    return figure, axes


def new_panels(
    width: float, height: float, shares: Sequence[float]
) -> tuple["Figure", list["Axes"]]:
    """Return a figure with panels beside each other, of these shares of the width.

    They have one vertical axis. Raises ReportError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ReportError(
            "the report's plots need matplotlib: pip install 'lclm_jax[demo]'"
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(1, len(shares), sharey=True, squeeze=False, width_ratios=shares)
    for axes in panels[0]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#888888")
        axes.tick_params(labelsize=FONT_SIZE, color="#888888")
        axes.grid(color="#E4E4E4", linewidth=0.7)
        axes.set_axisbelow(True)
    return figure, list(panels[0])


def add_legend(figure: "Figure", columns: int = 1, **options: Any):
    options = {"fontsize": FONT_SIZE, **options}
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, **options)


def percent_axis(axes: "Axes", top: float = 1.0):
    axes.set_ylim(0, top)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0], ["0 %", "25 %", "50 %", "75 %", "100 %"])


def plot_panel(panel: Panel, run: Run) -> "Figure":
    """Plot curves over the steps of a run, with its stages marked."""
    figure, axes = new_figure(*(LARGE if panel.large else SMALL))
    for number, (name, curve) in enumerate(panel.curves.items()):
        curve = _without_zeros(curve) if panel.scale == "log" else curve
        _plot_curve(axes, curve, name, panel, _curve_style(name, number, run))
    SCALES[panel.scale](axes, panel.curves)
    if panel.skipped:
        _mark_skipped(axes, panel.skipped)
    _mark_stages(axes, run, names=panel.large)
    axes.set_ylabel(panel.ylabel, fontsize=FONT_SIZE)
    if panel.large:
        axes.set_xlabel("step, all stages in a row", fontsize=FONT_SIZE)
        add_legend(figure, columns=2)
        return figure
    axes.set_xlabel("step", fontsize=FONT_SIZE)
    axes.set_title(panel.title, loc="left", fontsize=10)
    if any(panel.curves) or panel.skipped:
        add_legend(figure, columns=4, handlelength=1.2, columnspacing=0.9)
    return figure


class _CurveStyle(TypedDict):
    """The settings of a line that tell curves apart."""

    color: str
    linestyle: NotRequired[str]


def _curve_style(name: str, number: int, run: Run) -> _CurveStyle:
    if name in run.streams:
        number = run.streams.index(name)
        return {
            "color": STREAM_COLOURS[number % len(STREAM_COLOURS)],
            "linestyle": STREAM_DASHES[number % len(STREAM_DASHES)],
        }
    other = OTHER_CURVE_COLOURS[number % len(OTHER_CURVE_COLOURS)]
    return {"color": CURVE_COLOURS.get(name, other)}


def _plot_curve(axes: "Axes", curve: Curve, label: str, panel: Panel, style: _CurveStyle):
    few = sum(len(segment.steps) for segment in curve) < MAX_MARKERS
    for segment in curve:
        marked = len(segment.steps) < SHORT_SEGMENT or (panel.markers and few)
        axes.plot(
            segment.steps,
            segment.means,
            label=label,
            marker="o" if marked else None,
            markersize=3,
            linewidth=1.6,
            **style,
        )
        if panel.band and segment.lows != segment.highs:
            axes.fill_between(
                segment.steps,
                segment.lows,
                segment.highs,
                color=style["color"],
                alpha=0.15,
                linewidth=0,
            )
        label = "_"  # only the first segment enters the legend


def _without_zeros(curve: Curve) -> Curve:
    """Replace values that a logarithmic axis cannot show by NaN."""

    def positive(values: Sequence[float]) -> list[float]:
        return [value if value > 0 else math.nan for value in values]

    return [
        replace(
            segment,
            means=positive(segment.means),
            lows=positive(segment.lows),
            highs=positive(segment.highs),
        )
        for segment in curve
    ]


def _loss_scale(axes: "Axes", curves: Curves):
    axes.set_ylim(0, 1.05 * highest_mean(curves) or 1)


def _accuracy_scale(axes: "Axes", curves: Curves):
    percent_axis(axes)


def _gap_scale(axes: "Axes", curves: Curves):
    for share in (0, 1):
        axes.axhline(share, color="#888888", linewidth=0.9, zorder=1)
    axes.set_ylim(-0.25, 1.25)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")


def _log_scale(axes: "Axes", curves: Curves):
    """Set a logarithmic axis if a value is positive."""
    means = [mean for curve in curves.values() for mean in finite_means(curve) if mean > 0]
    if means:
        log_y_axis(axes, means)


def log_y_axis(axes: "Axes", values: Sequence[float]):
    """Set a logarithmic axis with a few labels on any range of positive values."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    if max(values) < 100 * min(values):
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(
        lambda value, _: f"{value:g}" if 1e-3 <= value < 1e4 else f"{value:.0e}"
    )
    axes.yaxis.set_minor_formatter(NullFormatter())


def _share_scale(axes: "Axes", curves: Curves):
    highest = highest_mean(curves)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    axes.set_ylim(0, 1.02 if highest > 0.5 else max(1.1 * highest, 0.01))


def _quantity_scale(axes: "Axes", curves: Curves):
    """Start at zero, and end above the band unless that would flatten the curves."""
    highs = [high for curve in curves.values() for segment in curve for high in segment.highs]
    band = max([0.0, *(high for high in highs if high > 0)])
    axes.set_ylim(0, min(1.05 * band, 1.5 * highest_mean(curves)) or 1)
    axes.yaxis.set_major_formatter(lambda value, _: short_number(value))


SCALES: dict[str, Callable[["Axes", Curves], None]] = {
    "loss": _loss_scale,
    "accuracy": _accuracy_scale,
    "gap": _gap_scale,
    "log": _log_scale,
    "share": _share_scale,
    "quantity": _quantity_scale,
    "free": lambda axes, curves: None,
}


def _mark_skipped(axes: "Axes", steps: Sequence[int]):
    shown = steps[:: math.ceil(len(steps) / MAX_CURVE_POINTS)]
    axes.plot(
        shown,
        [0.03] * len(shown),
        "|",
        color="#B00020",
        markersize=8,
        transform=axes.get_xaxis_transform(),
        label="skipped",
    )


def _mark_stages(axes: "Axes", run: Run, names: bool):
    """Shade every second stage, and write names above the axes without overlap."""
    from matplotlib.ticker import MaxNLocator

    end = run.last_step
    axes.set_xlim(0, 1.015 * end)
    axes.xaxis.set_major_locator(MaxNLocator(6 if names else 4, integer=True))
    axes.xaxis.set_major_formatter(
        lambda value, _: short_number(value) if end >= 10_000 else f"{value:,.0f}"
    )
    label_end = -math.inf
    for number, (name, start, stop) in enumerate(run.spans):
        if number % 2:
            axes.axvspan(start, stop, color="#F1F3F6", zorder=0)
        if number:
            axes.axvline(start, color="#AAAAAA", linewidth=0.8, zorder=1)
        if names:
            middle = (start + stop) / 2
            label_end = max(middle, label_end + 0.07 * end)
            _label_stage(axes, name, middle, label_end)


def _label_stage(axes: "Axes", name: str, middle: float, position: float):
    line = {"arrowstyle": "-", "color": "#AAAAAA", "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}
    axes.annotate(
        name,
        xy=(middle, 1.0),
        xytext=(position, 1.05),
        xycoords=axes.get_xaxis_transform(),
        textcoords=axes.get_xaxis_transform(),
        rotation=30,
        rotation_mode="anchor",
        ha="left",
        va="bottom",
        arrowprops=line,
        fontsize=FONT_SIZE,
    )


def plot_proportions(groups: Mapping[str, Mapping[str, Share]], ylabel: str) -> "Figure":
    """Plot bars of the three views with their intervals: {group: {view: share}}."""
    figure, axes = new_figure(*MEDIUM)
    for number, (view, colour) in enumerate(VIEW_COLOURS.items()):
        shares = [group[view] for group in groups.values()]
        places = [place + 0.27 * (number - 1) for place in range(len(groups))]
        values = [share.value for share in shares]
        axes.bar(places, values, width=0.25, color=colour, label=VIEW_NAMES[view])
        whiskers = {"ecolor": "#222222", "elinewidth": 1, "capsize": 2.5}
        axes.errorbar(places, values, yerr=_errors(shares), fmt="none", **whiskers)
        for place, share in zip(places, shares, strict=True):
            if math.isfinite(share.value):
                height = max(share.high, share.value) + 0.015
                label = {"ha": "center", "va": "bottom", "fontsize": 8, "color": "#222222"}
                axes.text(place, height, f"{100 * share.value:.0f}", **label)
    axes.set_xticks(range(len(groups)), list(groups), fontsize=FONT_SIZE)
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.set_ylabel(ylabel, fontsize=FONT_SIZE)
    percent_axis(axes, top=1.1)
    axes.grid(visible=False, axis="x")
    add_legend(figure, columns=3)
    return figure


def _errors(shares: Sequence[Share]) -> list[list[float]]:
    """Return the lengths of whiskers below and above."""
    return [
        [max(0.0, share.value - share.low) for share in shares],
        [max(0.0, share.high - share.value) for share in shares],
    ]


def plot_ratios(lines: Mapping[str, Mapping[str, Share]], ylabel: str) -> "Figure":
    """Plot shares with their intervals over the ratio: {name: {ratio: share}}."""
    figure, axes = new_figure(*MEDIUM)
    for (name, line), colour in zip(lines.items(), STREAM_COLOURS, strict=False):
        ratios, shares = [int(ratio) for ratio in line], list(line.values())
        values = [share.value for share in shares]
        style = {"color": colour, "marker": "o", "markersize": 4, "capsize": 2.5}
        axes.errorbar(ratios, values, yerr=_errors(shares), label=name, **style)
    log_x_axis(axes, sorted({int(ratio) for line in lines.values() for ratio in line}), str)
    axes.set_xlabel("tokens per latent", fontsize=FONT_SIZE)
    axes.set_ylabel(ylabel, fontsize=FONT_SIZE)
    percent_axis(axes, top=1.05)
    add_legend(figure, columns=2)
    return figure


def log_x_axis(axes: "Axes", ticks: Sequence[int], label: Callable[[int], str]):
    axes.set_xscale("log")
    axes.set_xticks(ticks, [label(tick) for tick in ticks], fontsize=FONT_SIZE)
    axes.set_xticks([], minor=True)


def plot_growth(
    lines: Mapping[str, Mapping[int, float]],
    xlabel: str,
    *,
    ylabel: str = "",
    title: str = "",
    size: tuple[float, float] = (5.6, 3.8),
) -> "Figure":
    """Plot quantities over a size, both axes logarithmic: {name: {size: quantity}}."""
    figure, axes = new_figure(*size)
    colours = (*VIEW_COLOURS.values(), *STREAM_COLOURS)
    for (name, line), colour in zip(lines.items(), colours, strict=False):
        colour = CURVE_COLOURS.get(name, colour)
        style = {"color": colour, "marker": "o", "markersize": 4, "linewidth": 1.6}
        axes.plot(list(line), list(line.values()), label=name, **style)
    sizes = sorted({size for line in lines.values() for size in line})
    log_x_axis(axes, _about_five(sizes), short_count)
    log_y_axis(axes, [value for line in lines.values() for value in line.values()])
    axes.set_xlabel(xlabel, fontsize=FONT_SIZE)
    axes.set_ylabel(ylabel, fontsize=FONT_SIZE)
    axes.set_title(title, loc="left", fontsize=10)
    add_legend(figure, columns=2 if title else 1)
    return figure


def plot_flop_parts(costs: Sequence[ReadingCost]) -> "Figure":
    """Plot the FLOPs of each component as a share of reading the text; parts add up by eye."""
    figure, axes = new_figure(*SMALL)
    shown = _about_five(costs)
    places, bottoms = range(len(shown)), [0.0] * len(shown)
    for component in COMPONENTS:
        flops = [getattr(cost.compressed, f"{component}_flops") for cost in shown]
        shares = [part / cost.plain.flops for part, cost in zip(flops, shown, strict=True)]
        style = {"width": 0.7, "color": COMPONENT_COLOURS[component], "label": component}
        axes.bar(places, shares, bottom=bottoms, **style)
        bottoms = [bottom + share for bottom, share in zip(bottoms, shares, strict=True)]
    axes.axhline(1.0, color=VIEW_COLOURS["text"], linewidth=1.6, label="full text")
    axes.set_ylim(0, 1.08 * max([1.0, *bottoms]))
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set_xticks(places, [short_count(cost.tokens) for cost in shown], fontsize=FONT_SIZE)
    axes.set_xlabel("context length, tokens", fontsize=FONT_SIZE)
    axes.set_title("FLOPs of latents against full text", loc="left", fontsize=10)
    axes.grid(visible=False, axis="x")
    add_legend(figure, columns=4, handlelength=1, columnspacing=0.8, fontsize=8)
    return figure


def plot_shares(groups: Mapping[str, Mapping[str, float]]) -> "Figure":
    """Plot horizontal bars of two sets of shares side by side: {set: {name: share}}."""
    names = list(next(iter(groups.values())))
    figure, axes = new_figure(5.6, 0.9 + 0.42 * len(names))
    colours = (VIEW_COLOURS["nothing"], VIEW_COLOURS["latents"])
    for number, ((label, shares), colour) in enumerate(zip(groups.items(), colours, strict=True)):
        places = [place + 0.36 * (number - 0.5) for place in range(len(names))]
        values = [shares[name] for name in names]
        axes.barh(places, values, height=0.34, color=colour, label=label)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    _name_bars(axes, names)
    add_legend(figure, columns=2)
    return figure


def _name_bars(axes: "Axes", names: Sequence[str]):
    axes.set_yticks(range(len(names)), names, fontsize=FONT_SIZE)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")


def plot_lengths(counts: Mapping[int, int]) -> "Figure":
    """Plot the number of examples by length, in bins that double: {lower bound: examples}."""
    figure, axes = new_figure(3.2, 2.4)
    lengths = sorted(counts)
    values = [counts[length] for length in lengths]
    axes.bar(range(len(lengths)), values, width=0.9, color=VIEW_COLOURS["latents"])
    ticks = _about_five(range(len(lengths)))
    axes.set_xticks(ticks, [short_count(lengths[tick]) for tick in ticks], fontsize=FONT_SIZE)
    axes.set_xlabel("tokens, at least", fontsize=FONT_SIZE)
    axes.grid(visible=False, axis="x")
    return figure


def plot_fills(fills: Mapping[str, Sequence[float]]) -> "Figure":
    """Plot histograms of how full rows are, over each other: {budget: share in use per row}."""
    figure, axes = new_figure(5.6, 3.0)
    lowest = min(0.9, *(min(values) for values in fills.values()))
    edges = [lowest + (1.0 - lowest) * edge / 40 for edge in range(41)]
    colours = (VIEW_COLOURS["text"], VIEW_COLOURS["latents"])
    for (label, values), colour in zip(fills.items(), colours, strict=False):
        axes.hist(values, bins=edges, color=colour, alpha=0.65, label=label)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set_xlabel("in use", fontsize=FONT_SIZE)
    axes.set_ylabel("rows", fontsize=FONT_SIZE)
    add_legend(figure, columns=2)
    return figure


def plot_memory(parts: Mapping[str, float], limit: float) -> "Figure":
    """Plot what a program takes of a chip's memory, beside all of it, in GiB."""
    figure, axes = new_figure(5.6, 1.9)
    sizes = list(parts.values())
    axes.barh(range(len(parts)), sizes, height=0.6, color=VIEW_COLOURS["latents"])
    axes.axvline(limit, color=STREAM_COLOURS[0], linewidth=1.6, label="memory of a chip")
    axes.set_xlabel("GiB", fontsize=FONT_SIZE)
    _name_bars(axes, list(parts))
    add_legend(figure)
    return figure


def _about_five(items: Sequence[Any]) -> Sequence[Any]:
    """Return about five of the items at equal distances, always with the last one."""
    step = max(1, math.ceil(len(items) / 5))
    return items[::-1][::step][::-1]
