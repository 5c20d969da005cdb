"""Curves over the steps of a run: points from its lines, few enough to draw, and the pictures of them.

However long a run was, a curve has some hundreds of points: each is then the mean of as many lines, and nothing is passed over.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lclm_jax.reports.findings import Figures, finite
from lclm_jax.reports.history import History, gap_of, skipped_steps, views_of
from lclm_jax.reports.plots import (
    DASHES,
    FONT,
    PART_COLOURS,
    STREAMS,
    VIEW_NAMES,
    VIEWS,
    new_figure,
    percent_axis,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 400  # points of a curve over the whole run
Value = Callable[[Figures], Any]
PARTS = (
    "encoder",
    "adapter",
    "decoder",
    "",
)  # components as the log names them; the last is all of them
COLOURS = dict(zip(PARTS, (*PART_COLOURS, "#333333"), strict=True))


@dataclass(frozen=True)
class Piece:
    """A stretch of a curve that is drawn as one line; NaN where no value was finite."""

    steps: Sequence[int]
    means: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]


Curve = Sequence[Piece]


def thin(points: Sequence[tuple[int, Any, float]], share: int) -> Piece:
    """`share` neighbours at a time become one: (step, value, weight) into the weighted mean, at the last of their steps."""
    steps, means, lows, highs = [], [], [], []
    for first in range(0, len(points), share):
        some = points[first : first + share]
        good = [
            (number, weight)
            for _, value, weight in some
            if (number := finite(value)) is not None and weight > 0
        ]
        steps.append(some[-1][0])
        means.append(
            sum(number * weight for number, weight in good) / sum(weight for _, weight in good)
            if good
            else math.nan
        )
        lows.append(min((number for number, _ in good), default=math.nan))
        highs.append(max((number for number, _ in good), default=math.nan))
    return Piece(steps, means, lows, highs)


def logged(history: History, value: Value, weight: Value | None = None) -> Curve:
    """What lines of the log say, a piece for each stage; a line whose value is None is left out."""
    share = math.ceil(sum(len(stage.lines) for stage in history.stages) / MOST)
    pieces = []
    for stage in history.stages:
        points = [
            (
                stage.start + line["step"],
                number,
                1.0 if weight is None else finite(weight(line)) or 0.0,
            )
            for line in stage.lines
            if (number := value(line)) is not None
        ]
        if points:
            pieces.append(thin(points, share))
    return pieces


def validated(history: History, value: Callable[[Any], float | None]) -> Curve:
    """What validations say, all stages in one piece, for the documents stay the same."""
    points = [
        (one.step, number, 1.0) for one in history.validations if (number := value(one)) is not None
    ]
    return [thin(points, math.ceil(len(points) / MOST))] if points else []


def components(history: History, name: str) -> dict[str, Curve]:
    """The curve of `name/<component>` for every component that was trained; without any, of `name` itself."""
    curves = {
        part: logged(history, lambda line, part=part: line.get(f"{name}/{part}"))
        for part in PARTS[:-1]
    }
    curves = {part: curve for part, curve in curves.items() if curve}
    return curves or _present({"": logged(history, lambda line: line.get(name))})


def relative_updates(history: History) -> dict[str, Curve]:
    """By component, how far a step moved the parameters as a share of their own norm."""
    return _present(
        {part: logged(history, lambda line, part=part: _moved(line, part)) for part in PARTS[:-1]}
    )


def _moved(line: Figures, part: str) -> float | None:
    moved, size = line.get(f"update_norm/{part}"), finite(line.get(f"parameter_norm/{part}"))
    if moved is None or not size:
        return None
    return math.nan if finite(moved) is None else moved / size


def tokens_per_latent(history: History) -> dict[str, Curve]:
    """Tokens read by the encoder for every latent; a line without latents is left out."""
    return _present({"": logged(history, _ratio, lambda line: line.get("latents"))})


def _ratio(line: Figures) -> float | None:
    latents, tokens = finite(line.get("latents")), finite(line.get("context_tokens"))
    return tokens / latents if latents and tokens is not None else None


def values(history: History, names: Mapping[str, str]) -> dict[str, Curve]:
    """Curves of plain values of the log: {label: key}."""
    return _present(
        {
            label: logged(history, lambda line, key=key: line.get(key))
            for label, key in names.items()
        }
    )


def _present(curves: Mapping[str, Curve]) -> dict[str, Curve]:
    return {name: curve for name, curve in curves.items() if curve}


def numbers(curve: Curve) -> Iterator[float]:
    return (mean for piece in curve for mean in piece.means if math.isfinite(mean))


def last(curve: Curve) -> float:
    """The last finite value; NaN where there is none."""
    return ([math.nan, *numbers(curve)])[-1]


def top(curves: Mapping[str, Curve]) -> float:
    """The greatest value of all that is drawn as a line; 0 where there is none."""
    return max([0.0, *(number for curve in curves.values() for number in numbers(curve))])


def streams_curves(history: History, quantity: str) -> dict[str, Curve]:
    """`quantity`, "loss" or "accuracy", of every stream trained on, each token counting the same."""

    def of(name: str, key: str) -> Value:
        return lambda line: (line.get("streams") or {}).get(name, {}).get(key)

    return _present(
        {name: logged(history, of(name, quantity), of(name, "tokens")) for name in history.streams}
    )


def plot_training(history: History, quantity: str) -> "Figure":
    """`quantity`, "loss" or "accuracy", of every stream over the steps of all stages in a row."""
    figure, axes = new_figure(5.6, 4.2)
    curves = streams_curves(history, quantity)
    for name, curve in curves.items():
        _draw(axes, curve, name, **_stream_style(history, name))
    _mark_stages(axes, history, names=True)
    axes.set_xlabel("step, all stages in a row", fontsize=FONT)
    if quantity == "loss":
        axes.set_ylabel("loss, nats per token", fontsize=FONT)
        axes.set_ylim(0, 1.05 * top(curves) or 1)
    else:
        axes.set_ylabel("best guess was right", fontsize=FONT)
        percent_axis(axes)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=FONT)
    return figure


def plot_components(
    history: History,
    curves: Mapping[str, Curve],
    title: str,
    band: bool = True,
    marked: bool = False,
) -> "Figure":
    """One quantity of every component on a logarithmic axis.

    `band` shades the range of values that points stand for where they are means; `marked` draws a short line at the foot for
    every step that was skipped.
    """
    figure, axes = new_figure(3.6, 3.3)
    for part, curve in curves.items():
        _draw(axes, _positive(curve), part or "all", band=band, color=COLOURS[part])
    _logarithmic(axes, curves)
    if marked and (steps := skipped_steps(history)):
        steps = steps[:: math.ceil(len(steps) / MOST)]
        axes.plot(
            steps,
            [0.03] * len(steps),
            "|",
            color="#B00020",
            markersize=8,
            transform=axes.get_xaxis_transform(),
            label="skipped",
        )
    return _finish(figure, axes, history, title, len(curves) + marked)


def plot_values(
    history: History, curves: Mapping[str, Curve], title: str, shares: bool = False
) -> "Figure":
    """Quantities on one linear axis that begins at nothing; `shares` in percent, up to all where they come near it."""
    figure, axes = new_figure(3.6, 3.3)
    for (name, curve), colour in zip(
        curves.items(), (VIEWS["latents"], STREAMS[0], VIEWS["text"]), strict=False
    ):
        _draw(axes, curve, name, band=not shares, color=colour)
    most = top(curves)
    if shares:
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
        axes.set_ylim(0, 1.02 if most > 0.5 else max(1.1 * most, 0.01))
    else:
        highest = max(
            [
                0.0,
                *(
                    high
                    for curve in curves.values()
                    for piece in curve
                    for high in piece.highs
                    if high > 0
                ),
            ]
        )
        axes.set_ylim(0, min(1.05 * highest, 1.5 * most) or 1)
        axes.yaxis.set_major_formatter(lambda value, _: short_number(value))
    return _finish(figure, axes, history, title, len(curves) if any(curves) else 0)


def plot_views(history: History, stream: str, quantity: str) -> "Figure":
    """Held-out loss or accuracy of a stream in the three views."""
    figure, axes = new_figure(3.6, 3.3)
    for view, colour in VIEWS.items():
        curve = validated(history, lambda one, view=view: views_of(one, stream, quantity).get(view))
        _draw(axes, curve, VIEW_NAMES[view].removeprefix("from "), color=colour, marker="o")
    if quantity == "accuracy":
        percent_axis(axes)
    return _finish(figure, axes, history, stream, 3)


def plot_gaps(history: History, streams: Sequence[str]) -> "Figure":
    """The share of the gap closed on every stream, from where latents are a little worse than nothing to a little above all."""
    figure, axes = new_figure(5.6, 4.2)
    for stream in streams:
        curve = validated(history, lambda one, stream=stream: gap_of(one, stream))
        _draw(axes, curve, stream, marker="o", **_stream_style(history, stream))
    for share in (0, 1):
        axes.axhline(share, color="#888888", linewidth=0.9, zorder=1)
    _mark_stages(axes, history, names=True)
    axes.set_xlabel("step, all stages in a row", fontsize=FONT)
    axes.set_ylabel("gap closed", fontsize=FONT)
    axes.set_ylim(-0.25, 1.25)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=FONT)
    return figure


def short_number(value: float) -> str:
    """A number on an axis in a few characters.

    >>> [short_number(n) for n in (0, 0.25, 1500, 128000, 2.5e6)]
    ['0', '0.25', '1.5k', '128k', '2.5M']
    """
    for power, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= power:
            return f"{value / power:.4g}{unit}"
    return f"{value:.3g}"


def _stream_style(history: History, name: str) -> dict[str, Any]:
    i = history.streams.index(name)
    return {"color": STREAMS[i % len(STREAMS)], "linestyle": DASHES[i % len(DASHES)]}


def _draw(
    axes: "Axes",
    curve: Curve,
    label: str,
    band: bool = False,
    marker: str | None = None,
    **style: Any,
):
    count = sum(len(piece.steps) for piece in curve)
    for piece in curve:
        mark = "o" if len(piece.steps) < 3 else marker if count < 40 else None
        axes.plot(
            piece.steps, piece.means, label=label, marker=mark, markersize=3, linewidth=1.6, **style
        )
        if band and piece.lows != piece.highs:
            axes.fill_between(
                piece.steps, piece.lows, piece.highs, color=style["color"], alpha=0.15, linewidth=0
            )
        label = "_"  # one entry in the legend


def _positive(curve: Curve) -> Curve:
    """The curve with what a logarithmic axis cannot show as NaN."""

    def only(values: Sequence[float]) -> list[float]:
        return [value if value > 0 else math.nan for value in values]

    return [
        Piece(piece.steps, only(piece.means), only(piece.lows), only(piece.highs))
        for piece in curve
    ]


def _logarithmic(axes: "Axes", curves: Mapping[str, Curve]):
    """A logarithmic axis with some numbers on it however short its range; none where no value is positive."""
    from matplotlib.ticker import LogLocator, NullFormatter

    shown = [value for curve in curves.values() for value in numbers(curve) if value > 0]
    if not shown:
        return
    axes.set_yscale("log")
    if max(shown) < 100 * min(shown):
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(
        lambda value, _: f"{value:.0e}" if not 1e-3 <= value < 1e4 else f"{value:g}"
    )
    axes.yaxis.set_minor_formatter(NullFormatter())


def _finish(figure: "Figure", axes: "Axes", history: History, title: str, entries: int) -> "Figure":
    _mark_stages(axes, history, names=False)
    axes.set_xlabel("step", fontsize=FONT)
    axes.set_title(title, loc="left", fontsize=10)
    if entries:
        figure.legend(
            loc="outside lower center",
            ncols=4,
            frameon=False,
            fontsize=FONT,
            handlelength=1.2,
            columnspacing=0.9,
        )
    return figure


def _mark_stages(axes: "Axes", history: History, names: bool):
    """Shades every second stage; `names` above the axes, pushed apart where stages are short."""
    from matplotlib.ticker import MaxNLocator

    end = history.end
    axes.set_xlim(0, 1.015 * end)
    axes.xaxis.set_major_locator(MaxNLocator(6 if names else 4, integer=True))
    axes.xaxis.set_major_formatter(
        lambda value, _: short_number(value) if end >= 10_000 else f"{value:,.0f}"
    )
    place = -math.inf
    for i, (name, start, stop) in enumerate(history.spans):
        if i % 2:
            axes.axvspan(start, stop, color="#F1F3F6", zorder=0)
        if i:
            axes.axvline(start, color="#AAAAAA", linewidth=0.8, zorder=1)
        if not names:
            continue
        middle = (start + stop) / 2
        place = max(middle, place + 0.07 * end)
        axes.annotate(
            name,
            xy=(middle, 1.0),
            xytext=(place, 1.05),
            xycoords=axes.get_xaxis_transform(),
            textcoords=axes.get_xaxis_transform(),
            rotation=30,
            rotation_mode="anchor",
            ha="left",
            va="bottom",
            arrowprops={
                "arrowstyle": "-",
                "color": "#AAAAAA",
                "linewidth": 0.8,
                "shrinkA": 0,
                "shrinkB": 0,
            },
            fontsize=FONT,
        )
