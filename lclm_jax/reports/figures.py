"""Curves over the steps of a run, thinned to as many points as a picture can show."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from lclm_jax.reports.events import skipped_steps
from lclm_jax.reports.formats import number
from lclm_jax.reports.records import COMPONENTS, Line, Run, finite
from lclm_jax.reports.statements import VIEW_NAMES, loss_gap_closed

MAX_CURVE_POINTS = 400  # over the whole run


@dataclass(frozen=True)
class Segment:
    """A part of a curve that is drawn as one line; NaN where no value was finite."""

    steps: Sequence[int]
    means: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]


Curve = Sequence[Segment]
Curves = Mapping[str, Curve]


@dataclass(frozen=True)
class Panel:
    """The curves of one picture, and a description of them for readers who cannot see it."""

    title: str
    curves: Curves
    description: str
    scale: str  # a key of `plots.SCALES`
    band: bool = False  # shade the range of the values behind each mean
    markers: bool = False
    large: bool = False
    ylabel: str = ""
    skipped: Sequence[int] = ()  # steps marked on the axis


def thin(points: Sequence[tuple[int, float, float]], group: int) -> Segment:
    """Merge each `group` of (step, value, weight) into its weighted mean at its last step."""
    steps: list[int] = []
    means: list[float] = []
    lows: list[float] = []
    highs: list[float] = []
    for first in range(0, len(points), group):
        merged = points[first : first + group]
        valid = [(value, weight) for _, value, weight in merged if finite(value) is not None]
        valid = [(value, weight) for value, weight in valid if weight > 0]
        values = [value for value, _ in valid] or [math.nan]
        total = sum(weight for _, weight in valid)
        mean = sum(value * weight for value, weight in valid) / total if valid else math.nan
        steps.append(merged[-1][0])
        means.append(mean)
        lows.append(min(values))
        highs.append(max(values))
    return Segment(steps, means, lows, highs)


def log_curve(run: Run, name: str, weight: str | None = None) -> Curve:
    """Return a number of the log as a curve with a segment per stage, without lines that lack it.

    `weight` names the number by which lines are weighted where several become a point.
    """
    group = math.ceil(sum(len(stage.lines) for stage in run.stages) / MAX_CURVE_POINTS)
    segments = []
    for stage in run.stages:
        points = [
            (
                stage.start + line.step,
                line.numbers[name],
                line.numbers.get(weight, 0.0) if weight else 1.0,
            )
            for line in stage.lines
            if name in line.numbers
        ]
        if points:
            segments.append(thin(points, group))
    return segments


def log_curves(run: Run, names: Mapping[str, str], weight: str | None = None) -> Curves:
    """Return the curves of numbers of the log by label, without those never logged."""
    curves = {label: log_curve(run, name, weight) for label, name in names.items()}
    return {label: curve for label, curve in curves.items() if curve}


def component_curves(run: Run, name: str) -> Curves:
    """Return the curve of every component that was trained, or of the model if none is logged."""
    by_component = {component: f"{name}/{component}" for component in COMPONENTS}
    return log_curves(run, by_component) or log_curves(run, {"all": name})


def stream_curves(run: Run, quantity: str) -> Curves:
    """Return the "loss" or "accuracy" of every stream trained on, weighted by tokens."""
    curves = {
        stream: log_curve(run, f"streams/{stream}/{quantity}", f"streams/{stream}/tokens")
        for stream in run.streams
    }
    return {stream: curve for stream, curve in curves.items() if curve}


def validation_curve(run: Run, value: Callable[[Line], float | None]) -> Curve:
    """Return a value of the validations as a curve of one segment, as their documents are fixed."""
    values = [(line.step, value(line), 1.0) for line in run.validations]
    points = [(step, known, weight) for step, known, weight in values if known is not None]
    return [thin(points, math.ceil(len(points) / MAX_CURVE_POINTS))] if points else []


def training_panels(run: Run) -> list[Panel]:
    stages = f"{len(run.stages)} stages ({', '.join(stage.name for stage in run.stages)})"
    quantities = (
        ("loss", ".2f", "loss, nats per token"),
        ("accuracy", ".1%", "top prediction is right"),
    )
    panels = []
    for quantity, form, ylabel in quantities:
        curves = stream_curves(run, quantity)
        description = f"Lines of the {quantity} of every stream over {stages}."
        description = f"{description} {describe_ends(curves, form)}"
        title = quantity.title()
        panels.append(Panel(title, curves, description, quantity, large=True, ylabel=ylabel))
    return panels


def detail_panels(run: Run) -> list[Panel]:
    """Return the small pictures of the numbers beside the loss, without those never logged."""
    pace = log_curves(run, {"": "positions_per_second"})
    ratio = log_curves(run, {"": "tokens_per_latent"}, "latents")
    fills = log_curves(run, {"positions": "fill", "windows": "window_fill"})
    times = log_curves(run, {"waiting for data": "waiting", "of the chip's peak": "mfu"})
    times = {name: curve for name, curve in times.items() if any(finite_means(curve))}
    norms = _detail("Gradient norm", component_curves(run, "gradient_norm"))
    panels = [
        replace(norms, skipped=skipped_steps(run)),
        _detail("Update norm", component_curves(run, "update_norm")),
        _detail("Update / parameters", component_curves(run, "relative_update")),
        _detail("Learning rate", component_curves(run, "rate"), band=False),
        _detail("Tokens per latent", ratio, "quantity", ".3g"),
        _detail("Budgets in use", fills, "share", ".1%", band=False),
        _detail("Positions per second", pace, "quantity", ",.0f"),
        _detail("Use of the time", times, "share", ".1%", band=False),
    ]
    return [panel for panel in panels if panel.curves]


def _detail(
    title: str, curves: Curves, scale: str = "log", form: str = ".2g", band: bool = True
) -> Panel:
    reached = [
        value
        for curve in curves.values()
        for segment in curve
        for value in (*segment.lows, *segment.highs)
        if math.isfinite(value)
    ]
    description = f"{title} over the steps of the run. {describe_ends(curves, form)}"
    if reached:
        low, high = number(min(reached), form), number(max(reached), form)
        description += f" In all from {low} to {high}."
    return Panel(title, curves, description, scale, band)


def validation_panels(run: Run, quantity: str) -> list[Panel]:
    """Return the "loss" of every stream in the three views, or the "accuracy" of repeating it."""
    panels = []
    for stream in validated_streams(run):
        if quantity == "accuracy" and not stream.startswith("reconstruction/"):
            continue
        curves = {}
        for view, name in VIEW_NAMES.items():
            read = partial(_by_view, stream=stream, quantity=quantity, view=view)
            curves[name.removeprefix("from ")] = validation_curve(run, read)
        scale = "accuracy" if quantity == "accuracy" else "free"
        description = _describe_views(run, stream, quantity)
        panels.append(Panel(stream, curves, description, scale, markers=True))
    return panels


def validated_streams(run: Run) -> list[str]:
    return [
        stream
        for stream in run.streams
        if any(validation.by_view(stream, "loss") for validation in run.validations)
    ]


def _describe_views(run: Run, stream: str, quantity: str) -> str:
    form = ".3f" if quantity == "loss" else ".1%"
    values = [validation.by_view(stream, quantity) for validation in run.validations]
    known = [
        ", ".join(f"{number(value, form)} {VIEW_NAMES[view]}" for view, value in views.items())
        for views in values
        if views
    ]
    description = f"Lines of the held-out {quantity} of {stream}."
    if len(known) > 1:
        description += f" First: {known[0]}."
    return f"{description} Last: {known[-1]}." if known else description


def _by_view(line: Line, stream: str, quantity: str, view: str) -> float | None:
    return line.by_view(stream, quantity).get(view)


def _gap(line: Line, stream: str) -> float | None:
    return loss_gap_closed(line.by_view(stream, "loss"))


def gap_panel(run: Run) -> Panel:
    """Return the share of the gap closed on every stream on which there is a gap."""
    streams = validated_streams(run)
    curves = {name: validation_curve(run, partial(_gap, stream=name)) for name in streams}
    curves = {name: curve for name, curve in curves.items() if curve}
    ends = describe_ends(curves, ".1%")
    description = f"Lines of the share of the gap closed over the steps of the run. {ends}"
    style = {"markers": True, "large": True, "ylabel": "gap closed"}
    return Panel("Gap closed", curves, description, "gap", **style)


def finite_means(curve: Curve) -> Iterator[float]:
    return (mean for segment in curve for mean in segment.means if math.isfinite(mean))


def highest_mean(curves: Curves) -> float:
    return max([0.0, *(mean for curve in curves.values() for mean in finite_means(curve))])


def describe_ends(curves: Curves, form: str) -> str:
    """Name the last finite value of every curve."""
    last = {name: list(finite_means(curve))[-1:] for name, curve in curves.items()}
    ends = [f"{name} {number(means[0], form)}".strip() for name, means in last.items() if means]
    return f"At the end: {', '.join(ends)}." if ends else "No value is finite."
