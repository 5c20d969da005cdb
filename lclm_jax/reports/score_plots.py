"""Pictures of an evaluation: scores against length, ratio and cost, with the paper's points.

A view has the colour and the marker of its name and the dashes of its ratio, so that no two views
differ in colour alone. Points of the paper are hollow.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lclm_jax.config import ConfigError
from lclm_jax.evaluation.paper import DEVICE
from lclm_jax.evaluation.statistics import Z_95, Mean
from lclm_jax.evaluation.views import View
from lclm_jax.reports.formats import short_count
from lclm_jax.reports.plots import (
    FONT_SIZE,
    STREAM_COLOURS,
    VIEW_COLOURS,
    add_legend,
    log_x_axis,
    log_y_axis,
    new_figure,
    percent_axis,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME_COLOURS = {
    **VIEW_COLOURS,
    "first": "#D55E00",
    "random": "#CC79A7",
    "expand": "#56B4E9",
}
NAME_MARKERS = {
    "latents": "o",
    "text": "s",
    "nothing": "X",
    "first": "^",
    "random": "v",
    "expand": "D",
}
OTHER_MARKERS = ("P", "*", "p", "h")
RATIO_DASHES = {None: "-", 4: "-", 8: "--", 16: ":"}
OTHER_DASHES = "-."
PAPER = f"paper ({DEVICE})"
FRONT = "best at this cost"
LAST_LABELS = (FRONT, PAPER)  # of a legend
SIZE = (5.6, 4.6)  # inches
MARKER_SIZE = 5.5
TOP = 1.05  # of an axis of shares
SHIFT = 0.012  # of lines beside each other, as a share of the length, so that whiskers stay apart


@dataclass(frozen=True)
class CostPoint:
    """The score of a view and what it costs, in the unit of the axis."""

    view: str
    cost: float
    score: Mean


def split_label(label: str) -> tuple[str, int | None]:
    """Return name and ratio of the label of a view; one with chunks, or of no view, stays whole.

    >>> split_label("latents 16x"), split_label("text"), split_label("summary of facts")
    (('latents', 16), ('text', None), ('summary of facts', None))
    >>> split_label("latents 16x + 2x512"), split_label("expand 16x of 256")
    (('latents 16x + 2x512', None), ('expand 16x of 256', None))
    """
    try:
        view = View.of_label(label)
    except ConfigError:
        return label, None
    return (label, None) if view.chunk_tokens else (view.name, view.ratio)


def plot_by_length(
    lines: Mapping[str, Mapping[int, Mean]], paper: Mapping[str, Mapping[int, float]]
) -> "Figure":
    """Plot scores with 95 % intervals over the length of the passage: {view: {tokens: score}}."""
    figure, axes = new_figure(*SIZE)
    styles = _styles([*lines, *paper])
    for number, (view, line) in enumerate(lines.items()):
        shift = 1 + SHIFT * (number - (len(lines) - 1) / 2)
        shifted = {shift * length: mean for length, mean in line.items()}
        _plot_means(axes, shifted, label=view, **styles[view])
    for view, scores in paper.items():
        _plot_hollow(axes, scores, styles[view])
    lengths = {length for line in (*lines.values(), *paper.values()) for length in line}
    log_x_axis(axes, _every_other(sorted(lengths)), short_count)
    _finish_scores(figure, axes, "tokens of context", bool(paper))
    return figure


def plot_by_ratio(scores: Mapping[str, Mean], paper: Mapping[str, float]) -> "Figure":
    """Plot the scores of views over their ratio; views without one are levels: {view: score}."""
    figure, axes = new_figure(*SIZE)
    lines: dict[str, dict[int, Mean]] = {}
    levels = {view: mean for view, mean in scores.items() if split_label(view)[1] is None}
    for view in scores.keys() - levels.keys():
        name, ratio = split_label(view)
        lines.setdefault(name, {})[ratio or 1] = scores[view]
    names = dict.fromkeys(split_label(view)[0] for view in scores)
    styles = _styles([*names, *(split_label(view)[0] for view in paper)])
    for name in names:
        if name in lines:
            _plot_means(axes, dict(sorted(lines[name].items())), label=name, **styles[name])
    for view, mean in levels.items():
        _plot_level(axes, mean, view, styles[view]["color"])
    published: dict[str, dict[int, float]] = {}
    for view, score in paper.items():
        name, ratio = split_label(view)
        if ratio:
            published.setdefault(name, {})[ratio] = score
        else:
            axes.axhline(score, color=styles[name]["color"], linewidth=1, linestyle=(0, (1, 3)))
    for name, line in published.items():
        _plot_hollow(axes, dict(sorted(line.items())), styles[name])
    ratios = {ratio for line in (*lines.values(), *published.values()) for ratio in line}
    log_x_axis(axes, sorted(ratios), str)
    _finish_scores(figure, axes, "tokens per latent", bool(paper))
    return figure


def plot_by_cost(
    points: Sequence[CostPoint], paper: Mapping[str, tuple[float, float]], xlabel: str
) -> "Figure":
    """Plot scores over a cost, with a line along the views that no other view beats in both.

    `paper` has the cost and the score by view.
    """
    figure, axes = new_figure(*SIZE)
    styles = _styles([*(point.view for point in points), *paper])
    front = pareto_front(points)
    axes.step(
        [point.cost for point in front],
        [point.score.value for point in front],
        where="post",
        color="#888888",
        linewidth=1,
        zorder=1,
        label=FRONT,
    )
    names = set()
    for point in points:
        name, ratio = split_label(point.view)
        style = {**styles[point.view], "linestyle": "none"}
        label = "_" if name in names else name
        below, above = _whiskers(point.score)
        errors = [[below], [above]]
        axes.errorbar(point.cost, point.score.value, errors, label=label, **style)
        _note(axes, point.cost, point.score.value, f"{ratio}x" if ratio else name)
        names.add(name)
    for view, (cost, score) in paper.items():
        _plot_hollow(axes, {cost: score}, styles[view])
        ratio = split_label(view)[1]
        _note(axes, cost, score, f"{ratio}x, paper" if ratio else f"{view}, paper")
    _cost_axis(axes, [*(point.cost for point in points), *(cost for cost, _ in paper.values())])
    _finish_scores(figure, axes, xlabel, bool(paper))
    return figure


def plot_costs(
    lines: Mapping[str, Mapping[int, float]],
    paper: Mapping[str, Mapping[int, float]],
    ylabel: str,
) -> "Figure":
    """Plot a cost over the length of the passage, both axes logarithmic: {view: {tokens: cost}}."""
    figure, axes = new_figure(*SIZE)
    styles = _styles([*lines, *paper])
    for view, line in lines.items():
        style = {"markersize": MARKER_SIZE, "linewidth": 1.6, **styles[view]}
        axes.plot(list(line), list(line.values()), label=view, **style)
    for view, line in paper.items():
        _plot_hollow(axes, line, styles[view])
    everything = [*lines.values(), *paper.values()]
    log_x_axis(axes, _every_other(sorted({x for line in everything for x in line})), short_count)
    log_y_axis(axes, [value for line in everything for value in line.values()])
    axes.set_xlabel("tokens of context", fontsize=FONT_SIZE)
    axes.set_ylabel(ylabel, fontsize=FONT_SIZE)
    _add_views_legend(figure, axes, bool(paper))
    return figure


def pareto_front(points: Iterable[CostPoint]) -> list[CostPoint]:
    """Return the points that no other beats in both cost and score, by increasing cost."""
    front: list[CostPoint] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.score.value)):
        if not front or point.score.value > front[-1].score.value:
            front.append(point)
    return front


def _styles(views: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the settings of each view's line: colour and marker by name, dashes by ratio."""
    others: list[str] = []
    styles = {}
    for view in views:
        name, ratio = split_label(view)
        if name not in NAME_COLOURS and name not in others:
            others.append(name)
        place = others.index(name) if name in others else 0
        styles[view] = {
            "color": NAME_COLOURS.get(name, STREAM_COLOURS[4 + place % 2]),
            "marker": NAME_MARKERS.get(name, OTHER_MARKERS[place % len(OTHER_MARKERS)]),
            "linestyle": RATIO_DASHES.get(ratio, OTHER_DASHES),
        }
    return styles


def _plot_means(axes: "Axes", line: Mapping[Any, Mean], **style: Any):
    values = [mean.value for mean in line.values()]
    errors = list(zip(*(_whiskers(mean) for mean in line.values()), strict=True))
    options = {"markersize": MARKER_SIZE, "linewidth": 1.4, "capsize": 2.5, **style}
    axes.errorbar(list(line), values, yerr=errors, **options)


def _whiskers(mean: Mean) -> tuple[float, float]:
    """Return how far a 95 % interval reaches below and above; zero where it is not known."""
    if share := mean.share_of_all_or_none:
        return share.value - share.low, share.high - share.value
    half = Z_95 * (mean.standard_error or 0.0)
    return half, half


def _plot_level(axes: "Axes", mean: Mean, label: str, colour: str):
    axes.axhline(mean.value, color=colour, linewidth=1.6, label=label)
    below, above = _whiskers(mean)
    axes.axhspan(mean.value - below, mean.value + above, color=colour, alpha=0.12, linewidth=0)


def _plot_hollow(axes: "Axes", line: Mapping[Any, float], style: Mapping[str, Any]):
    """Plot points of the paper."""
    hollow = {**style, "markerfacecolor": "white", "markersize": MARKER_SIZE + 2, "linewidth": 0.8}
    axes.plot(list(line), list(line.values()), zorder=3, alpha=0.85, **hollow)


def _note(axes: "Axes", x: float, y: float, text: str):
    options = {"xytext": (6, 2), "textcoords": "offset points", "fontsize": FONT_SIZE - 2}
    axes.annotate(text, (x, y), color="#333333", **options)


def _cost_axis(axes: "Axes", costs: Sequence[float]):
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    if max(costs) < 100 * min(costs):
        few = (1, 2, 5) if max(costs) > 5 * min(costs) else (1, 1.5, 2, 3, 4, 5, 6, 8)
        axes.xaxis.set_major_locator(LogLocator(subs=few))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(min(costs) / 1.3, max(costs) * 1.6)  # room for the notes at the right


def _finish_scores(figure: "Figure", axes: "Axes", xlabel: str, has_paper: bool):
    percent_axis(axes, TOP)
    axes.set_xlabel(xlabel, fontsize=FONT_SIZE)
    axes.set_ylabel("score, with 95 % intervals", fontsize=FONT_SIZE)
    _add_views_legend(figure, axes, has_paper)


def _add_views_legend(figure: "Figure", axes: "Axes", has_paper: bool):
    if has_paper:
        hollow = {"color": "#555555", "marker": "o", "markerfacecolor": "white", "linewidth": 0.8}
        axes.plot([], [], label=PAPER, markersize=MARKER_SIZE + 2, **hollow)
    entries = zip(*axes.get_legend_handles_labels(), strict=True)
    handles, labels = zip(*sorted(entries, key=lambda entry: entry[1] in LAST_LABELS), strict=True)
    options = {"handles": handles, "labels": labels, "columnspacing": 1.2}
    add_legend(figure, columns=4, fontsize=FONT_SIZE - 1, **options)


def _every_other(values: Sequence[int]) -> Sequence[int]:
    """Return values with gaps between them that leave room for labels, always with the last."""
    return values[::-1][:: 1 + len(values) // 8][::-1]
