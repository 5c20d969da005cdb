"""The course of a run on its page: how training went, what held-out documents said meanwhile, and what else happened."""

import math
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

from lclm_jax.reports import curves, findings, history
from lclm_jax.reports.curves import Curve
from lclm_jax.reports.findings import Figures, Stage, figure, finite, percent
from lclm_jax.reports.history import History, Validation
from lclm_jax.reports.html import Html, element, note, picture, section, table
from lclm_jax.reports.plots import VIEW_NAMES

LONG = 20  # rows of the timeline that are shown without being asked for
MOST = 1000  # rows of it that a page can hold


def training(config: Figures, run: History) -> list[Html]:
    """The pictures of the log and what each stage came to."""
    about = f"over {len(run.stages)} stages ({', '.join(stage.name for stage in run.stages)})"
    pictures = []
    for quantity in ("loss", "accuracy"):
        form = ".2f" if quantity == "loss" else ".1%"
        ends = _ends(curves.streams_curves(run, quantity), form)
        alt = f"Lines of the {quantity} of every stream {about}. {ends}"
        pictures.append(
            picture(findings.upper_first(quantity), curves.plot_training(run, quantity), alt)
        )
    plain = [stage["name"] for stage in config["stages"] if not stage.get("compress", True)]
    return [
        note(
            "Loss and share of trained tokens that were the model's best guess, per stream of examples, on the training batches "
            "as they came; every point is the mean since the point before. A stage that does not train on a stream leaves a gap."
            + (
                f" Contexts are plain text, not yet latents, in stage {' and '.join(plain)}."
                if plain
                else ""
            )
        ),
        element("div", *pictures, class_="pictures"),
        element("h3", "Where each stage ended: loss (accuracy)"),
        _stage_ends(run),
        *_inside(run),
    ]


def _stage_ends(run: History) -> Html:
    streams = list(
        dict.fromkeys(
            name for stage in run.stages for line in stage.lines for name in line.get("streams", ())
        )
    )
    rows = []
    for stage in run.stages:
        last = stage.lines[-1].get("streams", {})
        cells = [
            f"{figure(last[name].get('loss'), '.2f')} ({percent(last[name].get('accuracy'))})"
            if name in last
            else "–"
            for name in streams
        ]
        rows.append([stage.name, f"{stage.last:,} of {stage.steps:,}", *cells])
    return table(["stage", "steps", *streams], rows)


def _inside(run: History) -> list[Html]:
    """Small pictures of what goes on beside the loss, and the same in figures of each stage."""
    norms, updates = curves.components(run, "gradient_norm"), curves.components(run, "update_norm")
    moved, rates = curves.relative_updates(run), curves.components(run, "rate")
    ratio = curves.tokens_per_latent(run)
    fills = curves.values(run, {"positions": "fill", "windows": "window_fill"})
    pace = curves.values(run, {"": "positions_per_second"})
    times = curves.values(run, {"waiting for data": "waiting", "of the chip's peak": "mfu"})
    skipped = bool(history.skipped_steps(run))
    times = {name: curve for name, curve in times.items() if any(curves.numbers(curve))}
    panels = [
        (
            "Gradient norm",
            norms,
            lambda name: curves.plot_components(run, norms, name, marked=skipped),
            ".2g",
        ),
        ("Update norm", updates, lambda name: curves.plot_components(run, updates, name), ".2g"),
        (
            "Update / parameters",
            moved,
            lambda name: curves.plot_components(run, moved, name),
            ".2g",
        ),
        (
            "Learning rate",
            rates,
            lambda name: curves.plot_components(run, rates, name, band=False),
            ".2g",
        ),
        ("Tokens per latent", ratio, lambda name: curves.plot_values(run, ratio, name), ".3g"),
        (
            "Budgets in use",
            fills,
            lambda name: curves.plot_values(run, fills, name, shares=True),
            ".1%",
        ),
        ("Positions a second", pace, lambda name: curves.plot_values(run, pace, name), ",.0f"),
        (
            "Use of the time",
            times,
            lambda name: curves.plot_values(run, times, name, shares=True),
            ".1%",
        ),
    ]
    pictures = [
        picture(
            "",
            draw(name),
            f"{name} over the steps of the run. {_ends(found, form)}{_range(found, form)}",
        )
        for name, found, draw, form in panels
        if any(found.values())
    ]
    if not pictures:
        return []
    return [
        element("h3", "What went on inside"),
        note(
            "Norms and rates by component, on logarithmic axes"
            + (
                ", with red lines at the foot for skipped steps"
                if skipped and any(norms.values())
                else ""
            )
            + ". Where a run is too long for a point a line, each is the mean of several and the shade their range; values "
            "that are not finite, and on these axes zeros, are left out."
            + (
                " Update / parameters is how far a step moved a component as a share of its norm."
                if moved
                else ""
            )
        ),
        element("div", *pictures, class_="pictures thirds"),
        *_paces(run),
    ]


def _paces(run: History) -> list[Html]:
    """What each stage came to in figures; columns of which the log says nothing are left out."""
    columns: list[tuple[str, Callable[[Stage], float | None], str]] = [
        ("positions a second", lambda stage: _median(stage, "positions_per_second"), ",.0f"),
        ("seconds a step", lambda stage: _median(stage, "step_seconds"), ",.3g"),
        (
            "model FLOPs a second and device",
            lambda stage: _median(stage, "flops_per_second"),
            ".2e",
        ),
        ("of the chip's peak", lambda stage: _median(stage, "mfu"), ".1%"),
        ("waiting for data", lambda stage: _median(stage, "waiting"), ".1%"),
        ("tokens per latent", _ratio, ".3g"),
        ("steps skipped", lambda stage: finite(stage.lines[-1].get("skipped")), ",.0f"),
    ]
    cells = {name: [figure(of(stage), form) for stage in run.stages] for name, of, form in columns}
    known = {name: column for name, column in cells.items() if any(cell != "–" for cell in column)}
    lines = [line for stage in run.stages for line in stage.lines]
    unknown = any("mfu" in line for line in lines) and "of the chip's peak" not in known
    return [
        element("h3", "How each stage ran"),
        table(
            ["stage", *known],
            [
                [stage.name, *(known[name][i] for name in known)]
                for i, stage in enumerate(run.stages)
            ],
        ),
        note(
            "Medians over the lines of the log, but tokens per latent and skipped steps, which are of the whole stage."
            + (
                " The peak of this device is not known, so neither is the share of it in use."
                if unknown
                else ""
            )
        ),
    ]


def _median(stage: Stage, key: str) -> float | None:
    found = [number for line in stage.lines if (number := finite(line.get(key))) is not None]
    return median(found) if found else None


def _ratio(stage: Stage) -> float | None:
    tokens, latents = (
        sum(finite(line.get(key)) or 0.0 for line in stage.lines)
        for key in ("context_tokens", "latents")
    )
    return tokens / latents if latents else None


def validation(run: History) -> Html | None:
    """Held-out documents in the three views; None where they were not read."""
    streams = [
        name for name in run.streams if any(_has_views(one, name) for one in run.validations)
    ]
    if not streams:
        return None
    last = run.validations[-1]
    losses = [
        picture("", curves.plot_views(run, name, "loss"), _views_in_words(run, name, "loss"))
        for name in streams
    ]
    repeated = [name for name in streams if name.startswith("reconstruction/")]
    shares = [
        picture(
            "", curves.plot_views(run, name, "accuracy"), _views_in_words(run, name, "accuracy")
        )
        for name in repeated
    ]
    gaps = {
        name: curves.validated(run, lambda one, name=name: history.gap_of(one, name))
        for name in streams
    }
    gaps = {name: curve for name, curve in gaps.items() if curve}
    blocks = [
        note(
            "Documents that are never trained on, read in three views: the context as latents, as its full text, and left out. "
            "Gap closed is how much of the way from nothing to the full text the latents go, by loss: 0 % is no better than "
            "nothing, 100 % as good as the text."
        ),
        element("h3", "Loss, nats per token"),
        element("div", *losses, class_="pictures thirds"),
    ]
    if shares:
        blocks += [
            element("h3", "Passages repeated: tokens right"),
            element("div", *shares, class_="pictures thirds"),
        ]
    blocks.append(element("h3", "Share of the gap closed"))
    if gaps:
        alt = (
            f"Lines of the share of the gap closed over the steps of the run. {_ends(gaps, '.1%')}"
        )
        blocks += [
            element("div", picture("", curves.plot_gaps(run, list(gaps)), alt), class_="pictures"),
            note(
                "Nothing is drawn where the full text does not lower the loss, for then there is no gap; what lies more than a "
                "quarter below nothing or above the text is cut off."
            ),
        ]
    else:
        blocks.append(
            note(
                "The full text did not lower the loss of any stream, so there was no gap to close."
            )
        )
    blocks += [
        element("h3", f"The last validation: stage {last.stage}, step {last.step:,} of the run"),
        _last_table(last),
    ]
    return section("Validation", *blocks)


def _has_views(one: Validation, stream: str) -> bool:
    return bool(history.views_of(one, stream, "loss"))


def _last_table(last: Validation) -> Html:
    rows = []
    for name, views in last.streams.items():
        losses, shares = (
            history.views_of(last, name, quantity) for quantity in ("loss", "accuracy")
        )
        tokens = next(
            (view["tokens"] for view in views.values() if view and "tokens" in view), None
        )
        rows.append(
            [
                name,
                figure(tokens, ",.0f"),
                *(figure(losses.get(view), ".3f") for view in VIEW_NAMES),
                findings.say_gap(losses),
                *(percent(shares.get(view)) for view in VIEW_NAMES),
            ]
        )
    names = VIEW_NAMES.values()
    return table(
        [
            "stream",
            "tokens",
            *(f"loss {name}" for name in names),
            "gap closed",
            *(f"right {name}" for name in names),
        ],
        rows,
    )


def _views_in_words(run: History, stream: str, quantity: str) -> str:
    """The alt text of a picture of the three views, with where they stood first and last."""
    known = [
        values for one in run.validations if (values := history.views_of(one, stream, quantity))
    ]
    form = ".3f" if quantity == "loss" else ".1%"

    def said(values: Mapping[str, float]) -> str:
        return ", ".join(
            f"{figure(value, form)} {VIEW_NAMES[view]}" for view, value in values.items()
        )

    words = f"Lines of the held-out {quantity} of {stream}."
    if len(known) > 1:
        words += f" First: {said(known[0])}."
    return f"{words} Last: {said(known[-1])}." if known else words


def happened(run: History) -> Html:
    """The timeline, folded away where it is long."""
    if not run.events:
        return section(
            "What happened",
            note(
                "There is no events.jsonl in this directory, or nothing in it: restarts and the like were not written down."
            ),
        )
    rows = history.timeline(run)
    told = element("p", history.summarise(run))
    cut = len(rows) - MOST
    if cut > 0:
        rows = [
            *rows[: MOST // 2],
            ["…", "", "", f"{cut:,} more", "in events.jsonl"],
            *rows[-MOST // 2 :],
        ]
    shown = table(["when, UTC", "step", "stage", "what", "particulars"], rows, words=True)
    if len(run.events) > LONG:
        shown = element("details", element("summary", f"All {len(run.events):,} events"), shown)
    return section("What happened", told, shown)


def _ends(found: Mapping[str, Curve], form: str) -> str:
    """Where curves end, in words."""
    ends = {name: curves.last(curve) for name, curve in found.items()}
    said = ", ".join(
        f"{name} {figure(value, form)}".strip()
        for name, value in ends.items()
        if math.isfinite(value)
    )
    return f"At the end: {said}." if said else "No value is finite."


def _range(found: Mapping[str, Any], form: str) -> str:
    """The least and the greatest that curves reach, in words."""
    lows = [
        low
        for curve in found.values()
        for piece in curve
        for low in piece.lows
        if math.isfinite(low)
    ]
    highs = [
        high
        for curve in found.values()
        for piece in curve
        for high in piece.highs
        if math.isfinite(high)
    ]
    return (
        f" In all from {figure(min(lows), form)} to {figure(max(highs), form)}."
        if lows and highs
        else ""
    )
