"""Pictures of a sweep: losses of its settings, its scaling law, and encoders at a budget."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lclm_jax.reports.formats import short_number
from lclm_jax.reports.plots import (
    FONT_SIZE,
    LARGE,
    STREAM_COLOURS,
    VIEW_COLOURS,
    add_legend,
    log_x_axis,
    new_figure,
    new_panels,
)
from lclm_jax.sweeps.analysis.best_encoder import Optimum
from lclm_jax.sweeps.analysis.hold_out import HoldOut
from lclm_jax.sweeps.findings import LOSS, SettingScores
from lclm_jax.sweeps.size_study import SizeStudy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSS_LABEL = "held-out loss from latents, nats per token"
MARKERS = ("o", "s", "^", "D", "v", "P")
BESIDE = 3.0  # factor by which the axis of encoders exceeds the sizes trained
UNTRAINED = "#F1F3F6"


def plot_settings(settings: Mapping[str, SettingScores], baseline: str | None) -> "Figure":
    """Plot the loss of every setting, a point for each seed, and beside it the published loss.

    `settings` are by label; that of the baseline is in bold.
    """
    published = [setting.published for setting in settings.values()]
    shares = (3, 2) if any(published) else (1,)
    figure, (axes, *beside) = new_panels(
        2.6 + len(shares) * 2.6, 1.2 + 0.28 * len(settings), shares
    )
    places = range(len(settings))
    for place, setting in zip(places, settings.values(), strict=True):
        losses = setting.scores(LOSS, "latents")
        axes.plot(losses, [place] * len(losses), "o", color="#56B4E9", markersize=4, alpha=0.8)
        style = {"color": VIEW_COLOURS["latents"], "markersize": 12, "markeredgewidth": 2}
        axes.plot([np.mean(losses)], [place], "|", **style)
    axes.set_yticks(places, list(settings), fontsize=FONT_SIZE)
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == baseline else "normal")
    axes.invert_yaxis()
    axes.set_xlabel(LOSS_LABEL, fontsize=FONT_SIZE)
    for panel in beside:
        _plot_published(panel, published)
    return figure


def _plot_published(axes: "Axes", published: Sequence[tuple[float, float] | None]):
    """Plot published losses, or the ranges that they are in."""
    for place, losses in enumerate(published):
        if losses:
            ends = sorted(set(losses))
            axes.plot(ends, [place] * len(ends), "D-", color="#555555", markerfacecolor="white")
    axes.set_xlabel("the paper's loss", fontsize=FONT_SIZE)


def plot_law(study: SizeStudy, limits: Mapping[float, float]) -> "Figure":
    """Plot losses over the encoder's parameters, a colour for each decoder, with the law's curves.

    Shown are cells with the most tokens and the lowest ratio. `limits` are losses of the
    uncompressed decoders, by their parameters.
    """
    figure, axes = new_figure(*LARGE)
    tokens = max(cell.tokens for cell in study.observations)
    ratio = min(cell.ratio for cell in study.observations)
    shown = [cell for cell in study.observations if (cell.tokens, cell.ratio) == (tokens, ratio)]
    decoders = sorted({cell.decoder for cell in shown})
    encoders = sorted({cell.encoder for cell in shown})
    sizes = np.geomspace(encoders[0], encoders[-1], 60)
    for number, decoder in enumerate(decoders):
        cells = [cell for cell in shown if cell.decoder == decoder]
        colour = STREAM_COLOURS[number % len(STREAM_COLOURS)]
        marker = MARKERS[number % len(MARKERS)]
        label = f"decoder of {short_number(decoder)}"
        style = {"linestyle": "none", "markersize": 4.5, "label": label}
        losses = [cell.loss for cell in cells]
        axes.plot([cell.encoder for cell in cells], losses, marker, color=colour, **style)
        curve = study.law.predict(encoder=sizes, decoder=decoder, tokens=tokens, ratio=ratio)
        axes.plot(sizes, curve, color=colour, linewidth=1.2)
        if decoder in limits:
            axes.axhline(limits[decoder], color=colour, linewidth=1, linestyle=(0, (4, 3)))
    if limits:
        axes.plot([], [], color="#555555", linestyle=(0, (4, 3)), label="uncompressed")
    _encoder_axis(axes, encoders)
    axes.set_ylabel(LOSS_LABEL, fontsize=FONT_SIZE)
    add_legend(figure, columns=3)
    return figure


def plot_budgets(optima: Sequence[Optimum], encoders: Sequence[float]) -> "Figure":
    """Plot the predicted loss over the encoder at each budget, with 95 % bands and the best."""
    figure, axes = new_figure(*LARGE)
    low, high = min(encoders) / BESIDE, max(encoders) * BESIDE
    for number, optimum in enumerate(optima):
        points = [(size, loss) for size, loss in optimum.curve if low <= size <= high]
        sizes, losses = [size for size, _ in points], [loss for _, loss in points]
        colour = STREAM_COLOURS[number % len(STREAM_COLOURS)]
        label = f"{optimum.budget:.2g} FLOPs"
        axes.plot(sizes, [x.value for x in losses], color=colour, linewidth=1.6, label=label)
        bounds = [x.low for x in losses], [x.high for x in losses]
        axes.fill_between(sizes, *bounds, color=colour, alpha=0.15, linewidth=0)
        best = optimum.encoder
        if low <= best.value <= high:
            axes.plot([best.value], [optimum.loss.value], "o", color=colour, markersize=6)
            ends = [max(best.low, low), min(best.high, high)]
            axes.plot(ends, [optimum.loss.value] * 2, color=colour, linewidth=1)
    axes.axvspan(low, min(encoders), color=UNTRAINED, zorder=0)
    axes.axvspan(max(encoders), high, color=UNTRAINED, zorder=0, label="no cells of such sizes")
    axes.set_xlim(low, high)
    _encoder_axis(axes, encoders)
    axes.set_ylabel("predicted loss, nats per token", fontsize=FONT_SIZE)
    add_legend(figure, columns=2)
    return figure


def plot_predictions(hold_outs: Mapping[str, HoldOut]) -> "Figure":
    """Plot predicted over observed losses of cells that the law was fitted without."""
    figure, axes = new_figure(4.2, 4.2)
    ends = []
    for number, (factor, held_out) in enumerate(hold_outs.items()):
        observed = [x.observed for x in held_out.predictions]
        predicted = [x.predicted for x in held_out.predictions]
        errors = [
            [x.value - x.low for x in predicted],
            [x.high - x.value for x in predicted],
        ]
        axes.errorbar(
            observed,
            [x.value for x in predicted],
            np.maximum(errors, 0),
            fmt=MARKERS[number % len(MARKERS)],
            color=STREAM_COLOURS[number % len(STREAM_COLOURS)],
            capsize=2.5,
            label=f"largest {factor}",
        )
        ends += [*observed, *(x.value for x in predicted)]
    axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color="#888888", linewidth=1)
    axes.set_xlabel("observed loss", fontsize=FONT_SIZE)
    axes.set_ylabel("predicted loss, 95 %", fontsize=FONT_SIZE)
    add_legend(figure, columns=2)
    return figure


def _encoder_axis(axes: "Axes", encoders: Sequence[float]):
    ticks = [round(size) for size in encoders]
    log_x_axis(axes, ticks, short_number)
    axes.set_xlabel("parameters of the encoder's layers", fontsize=FONT_SIZE)
