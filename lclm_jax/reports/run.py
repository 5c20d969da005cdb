"""The report of a run: what was trained, whether compression works, and what it costs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lclm_jax.files import run_layout
from lclm_jax.files.atomic import write_whole
from lclm_jax.reports import events, figures, plots, statements
from lclm_jax.reports.figures import Panel
from lclm_jax.reports.formats import UNKNOWN, interval, length_range, number, percent
from lclm_jax.reports.pages import Picture, picture, render
from lclm_jax.reports.records import (
    MAKE_EVERYTHING,
    VIEWS,
    Evaluation,
    Line,
    ReadingCost,
    Reconstruction,
    Run,
    Share,
    Stage,
    read_run,
)
from lclm_jax.reports.statements import VIEW_NAMES

MAX_EVENTS = 1000  # rows of the timeline
MAX_EVENTS_OPEN = 20  # a longer timeline is folded away
MEDIANS = {  # heading of a column: the number of a log line, and its format
    "positions per second": ("positions_per_second", ",.0f"),
    "seconds per step": ("step_seconds", ",.3g"),
    "model FLOPs per second and device": ("flops_per_second", ".2e"),
    "of the chip's peak": ("mfu", ".1%"),
    "waiting for data": ("waiting", ".1%"),
}
MAX_QUESTIONS = 12  # among the samples
TOWER_FIELDS = ("vocab", "width", "layers", "heads", "kv_heads", "head_dim", "mlp")


def write_report(run_directory: str | Path) -> Path:
    """Write `report.html` into a run's directory, from the other files in it.

    All but `config.json` may be missing; the page then says so. Raises ReportError without a
    config, without matplotlib, or where a file is damaged.
    """
    directory = Path(run_directory)
    run = read_run(directory)
    contents = {
        "run": run,
        "make_everything": MAKE_EVERYTHING,
        "config": json.dumps(run.config, indent=2),
        "towers": _towers(run.config["model"]),
        "view_names": VIEW_NAMES,
        "history": events.summarise(run),
        "training": _training(run),
        "validation": _validation(run),
        "timeline": _timeline(run),
        "evaluation": run.evaluation and _evaluation(run.evaluation),
    }
    path = directory / run_layout.REPORT
    write_whole(path, render("run.html.j2", **contents))
    return path


def _towers(model: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    headings = ["tower", *(field.replace("_", " ") for field in TOWER_FIELDS)]
    towers = {tower: model[tower] for tower in ("encoder", "decoder")}
    rows = [
        [name, *(f"{tower[field]:,}" for field in TOWER_FIELDS)] for name, tower in towers.items()
    ]
    return headings, rows


def _training(run: Run) -> dict[str, Any]:
    plain = [stage["name"] for stage in run.config["stages"] if not stage.get("compress", True)]
    details = figures.detail_panels(run)
    return {
        "plain_stages": plain,
        "curves": [_draw(panel, run, panel.title) for panel in figures.training_panels(run)]
        if run.stages
        else [],
        "ends": _stage_ends(run),
        "details": [_draw(panel, run) for panel in details],
        "skips_drawn": any(panel.skipped for panel in details),
        "has_updates": any(panel.title == "Update / parameters" for panel in details),
        "paces": _stage_paces(run),
    }


def _draw(panel: Panel, run: Run, caption: str = "") -> Picture:
    return picture(plots.plot_panel(panel, run), panel.description, caption)


def _stage_ends(run: Run) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows: loss and accuracy of every stream at the end of each stage."""
    lines = [line for stage in run.stages for line in stage.lines]
    streams = list(dict.fromkeys(name for line in lines for name in line.streams))
    rows = []
    for stage in run.stages:
        last = stage.lines[-1]
        cells = [_end(last, name) if name in last.streams else UNKNOWN for name in streams]
        rows.append([stage.name, f"{stage.last_step:,} of {stage.steps:,}", *cells])
    return ["stage", "steps", *streams], rows


def _end(line: Line, stream: str) -> str:
    loss, accuracy = (
        line.finite(f"streams/{stream}/{quantity}") for quantity in ("loss", "accuracy")
    )
    return f"{number(loss, '.2f')} ({percent(accuracy)})"


def _stage_paces(run: Run) -> tuple[list[str], list[list[str]], bool]:
    """Return headings and rows, without columns that the log lacks; the peak is not known."""
    columns = {"stage": [stage.name for stage in run.stages]}
    for heading, (name, form) in MEDIANS.items():
        columns[heading] = [number(stage.median(name), form) for stage in run.stages]
    columns["tokens per latent"] = [number(_ratio(stage), ".3g") for stage in run.stages]
    columns["steps skipped"] = [
        number(stage.lines[-1].finite("skipped"), ",.0f") for stage in run.stages
    ]
    known = {heading: cells for heading, cells in columns.items() if set(cells) - {UNKNOWN}}
    logged = any("mfu" in line.numbers for stage in run.stages for line in stage.lines)
    rows = [list(row) for row in zip(*known.values(), strict=True)]
    return list(known), rows, logged and "of the chip's peak" not in known


def _ratio(stage: Stage) -> float | None:
    latents = stage.total("latents")
    return stage.total("context_tokens") / latents if latents else None


def _validation(run: Run) -> dict[str, Any] | None:
    """Return the contents of the section on held-out documents; None if none were read."""
    if not figures.validated_streams(run):
        return None
    gap, last = figures.gap_panel(run), run.validations[-1]
    rows = []
    for stream in last.streams:
        losses, shares = (last.by_view(stream, quantity) for quantity in ("loss", "accuracy"))
        tokens = [last.finite(f"streams/{stream}/{view}/tokens") for view in VIEWS]
        rows.append(
            [
                stream,
                number(next((count for count in tokens if count is not None), None), ",.0f"),
                *(number(losses.get(view), ".3f") for view in VIEWS),
                statements.describe_gap(losses),
                *(percent(shares.get(view)) for view in VIEWS),
            ]
        )
    return {
        "losses": [_draw(panel, run) for panel in figures.validation_panels(run, "loss")],
        "accuracies": [_draw(panel, run) for panel in figures.validation_panels(run, "accuracy")],
        "gap": _draw(gap, run) if gap.curves else None,
        "last": last,
        "rows": rows,
    }


def _timeline(run: Run) -> dict[str, Any]:
    rows = events.timeline(run)
    hidden = len(rows) - MAX_EVENTS
    if hidden > 0:
        half = MAX_EVENTS // 2
        gap = ("…", "", "", f"{hidden:,} more", "in events.jsonl")
        rows = [*rows[:half], gap, *rows[-half:]]
    return {"rows": rows, "count": len(run.events), "folded": len(run.events) > MAX_EVENTS_OPEN}


def _evaluation(evaluation: Evaluation) -> dict[str, Any]:
    verdict, facts = statements.summarise(evaluation)
    with_ratios = [entry for entry in evaluation.reconstruction if entry.ratios]
    return {
        "verdict": verdict,
        "facts": facts,
        "judgements": statements.judge_all(evaluation),
        "passages": _passage_pictures(evaluation),
        "ratios": _ratio_picture(with_ratios) if with_ratios else None,
        "ratio_table": _ratio_table(with_ratios) if with_ratios else None,
        "questions": _question_picture(evaluation),
        "costs": {name: _cost_pictures(name, costs) for name, costs in evaluation.cost.items()},
        "shown_questions": evaluation.samples.questions[:MAX_QUESTIONS],
    }


def _passage_pictures(evaluation: Evaluation) -> list[Picture]:
    pictures = []
    for source, entries in statements.by_source(evaluation.reconstruction).items():
        groups = {f"{length_range(entry.lengths)} tokens": _accuracies(entry) for entry in entries}
        alt = f"Bars of the reconstruction accuracy on {source}."
        for name, shares in groups.items():
            alt = f"{alt} {_list_shares(name, shares)}"
        pictures.append(picture(plots.plot_proportions(groups, "tokens right"), alt, source))
    return pictures


def _accuracies(entry: Reconstruction) -> dict[str, Share]:
    return {view: getattr(entry, view).accuracy for view in VIEWS}


def _list_shares(name: str, shares: Mapping[str, Share]) -> str:
    by_view = (f"{percent(shares[view].value)} {VIEW_NAMES[view]}" for view in VIEWS)
    return f"{name}: {', '.join(by_view)}."


def _ratio_picture(entries: list[Reconstruction]) -> Picture:
    lines = {
        _label(entry): {ratio: score.accuracy for ratio, score in entry.ratios.items()}
        for entry in entries
    }
    sentences = " ".join(statements.judge_ratios(entries))
    alt = f"Lines of the reconstruction accuracy by ratio. {sentences}"
    return picture(plots.plot_ratios(lines, "tokens right"), alt)


def _ratio_table(entries: list[Reconstruction]) -> tuple[list[str], list[list[str]]]:
    ratios = list(entries[0].ratios)
    rows = []
    for entry in entries:
        shares = [entry.ratios[ratio].accuracy for ratio in ratios] + [entry.nothing.accuracy]
        rows.append([_label(entry), *map(interval, shares)])
    return ["passages", *(f"ratio {ratio}" for ratio in ratios), "from nothing"], rows


def _label(entry: Reconstruction) -> str:
    return f"{entry.source}, {length_range(entry.lengths)} tokens"


def _question_picture(evaluation: Evaluation) -> Picture | None:
    if evaluation.questions is None:
        return None
    shares = {view: getattr(evaluation.questions, view) for view in VIEWS}
    alt = (
        f"Bars of the share of questions answered exactly. {_list_shares('All questions', shares)}"
    )
    return picture(plots.plot_proportions({"all questions": shares}, "answered exactly"), alt)


def _cost_pictures(model: str, costs: tuple[ReadingCost, ...]) -> list[Picture]:
    lengths = f"for {costs[0].tokens:,} to {costs[-1].tokens:,} tokens of context, {model}"
    pictures = []
    for attribute, title in (
        ("positions", "Decoder positions"),
        ("cache_bytes", "KV cache, bytes"),
        ("flops", "Prefill FLOPs"),
    ):
        lines = {
            "full text": {cost.tokens: getattr(cost.plain, attribute) for cost in costs},
            "latents": {cost.tokens: getattr(cost.compressed, attribute) for cost in costs},
        }
        figure = plots.plot_growth(lines, "context length, tokens", title=title, size=plots.SMALL)
        alt = f"Lines of {title.lower()} {lengths}, full text against latents."
        pictures.append(picture(figure, alt))
    alt = (
        "Stacked bars of the FLOPs of encoder, adapter and decoder "
        f"as a share of reading the full text, {lengths}."
    )
    return [*pictures, picture(plots.plot_flop_parts(costs), alt)]
