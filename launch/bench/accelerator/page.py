"""HTML page with all measurements: goals, pictures, and a table for every part."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launch.bench.accelerator import summary as figures
from launch.bench.accelerator.pictures import write_pictures
from launch.bench.accelerator.summary import PAPER, Results, Summary, bound, shown
from lclm_jax.files.atomic import write_whole
from lclm_jax.reports.pages import render
from lclm_jax.reports.records import ReportError

GOALS = ("figure", "value", "goal", "verdict")
# Fields that tables leave out; the JSON files have them.
HIDDEN_FIELDS = ("rounds", "losses", "points", "packages", "allowed")


def write_page(directory: Path, summary: Summary, pictures: bool = True) -> Path:
    """Write index.html and its pictures, without pictures if matplotlib is missing."""
    drawn, reason = draw(directory, summary) if pictures else ([], "Pictures are drawn at the end.")
    page = render(
        "measurements.html.j2",
        [Path(__file__).parent],
        title=title(summary),
        goals=(GOALS, list(goal_rows(summary))),
        machine=machine(summary),
        pictures=drawn,
        without_pictures=reason,
        first_tokens=first_tokens(summary),
        steps=steps(summary),
        parts=list(part_sections(summary.results)),
    )
    file = directory / "index.html"
    write_whole(file, page)
    return file


def draw(directory: Path, summary: Summary) -> tuple[list[tuple[str, str]], str]:
    """Draw the pictures; return their files and captions, or none and the reason."""
    try:
        return write_pictures(directory, summary), ""
    except ReportError as error:
        return [], str(error)


def title(summary: Summary) -> str:
    device = figures.measurements(summary.results, "peaks").get("machine", {}).get("device")
    return f"lclm_jax on {device or 'this machine'}"


def machine(summary: Summary) -> str:
    facts = figures.measurements(summary.results, "peaks").get("machine", {})
    packages = ", ".join(f"{name} {number}" for name, number in facts.get("packages", {}).items())
    parts = (facts.get("nvidia"), f"Python {facts.get('python', '?')}", packages, facts.get("code"))
    return "; ".join(part for part in parts if part)


def goal_rows(summary: Summary) -> Iterator[tuple[str, str, str, str]]:
    for goal in summary.goals:
        yield goal.name, shown(goal.value, goal.unit), bound(goal), goal.verdict


def first_tokens(summary: Summary) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the table of first tokens, with the paper's figures and the time of FLOPs at peak."""
    peak = figures.measured_flops(summary.results)
    headings = ("context", "ratio", "latents", "compress", "prefill", "first token", "paper, H200")
    headings += ("FLOPs at peak", "compile", "peak memory", "paper, H200", "runs")
    rows = []
    for result in figures.measurements(summary.results, "first_token.compressed").values():
        paper = PAPER.get(result["tokens"]) if result["ratio"] == figures.RATIO else None
        rows.append(
            (
                f"{result['tokens']:,}",
                f"{result['ratio']}x",
                f"{result['latents']:,}",
                shown(result["compress_seconds"], "s"),
                shown(result["prefill_seconds"], "s"),
                shown(result["seconds"], "s"),
                shown(paper and paper[0], "s"),
                shown(result["flops"] / peak if peak else None, "s"),
                shown(result["compile_seconds"], "s"),
                gigabytes(result["peak_bytes"]),
                gigabytes(paper and paper[1]),
                str(result["repeats"]),
            )
        )
    return headings, rows


def steps(summary: Summary) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the table of training steps."""
    headings = ("step", "seconds", "MFU, data sheet", "MFU, measured peak", "compile")
    headings += ("peak memory", "predicted", "ratio", "steps")
    rows = []
    for number in range(3):
        for name, result in figures.measurements(summary.results, f"training.{number}").items():
            timed = bool(result["seconds"])
            shares = [
                figures.scaled(figures.mfu(summary.results, result, measured), 100)
                if timed
                else None
                for measured in (False, True)
            ]
            rows.append(
                (
                    name,
                    shown(result["seconds"], "s") if timed else "does not fit",
                    shown(shares[0], "%"),
                    shown(shares[1], "%"),
                    shown(result["compile_seconds"], "s"),
                    gigabytes(result["peak_bytes"]),
                    gigabytes(result["predicted_peak_bytes"]),
                    shown(result["peak_over_predicted"]),
                    str(result["steps"]),
                )
            )
    return headings, rows


def gigabytes(size: float | None) -> str:
    return shown(figures.scaled(size, 1e-9), "GB")


def part_sections(results: Results) -> Iterator[dict[str, Any]]:
    """Yield the measurements of every part, and the reasons for those that are missing."""
    for name, part in results.items():
        texts = {what: cells(result) for what, result in part["measurements"].items()}
        keys = list(dict.fromkeys(key for row in texts.values() for key in row))
        rows = [(what, *(row.get(key, "") for key in keys)) for what, row in texts.items()]
        missing = [
            f"{what}\n{reason}"
            for kind in ("errors", "skipped")
            for what, reason in part[kind].items()
        ]
        yield {"name": name, "table": (("measurement", *keys), rows), "missing": missing}


def cells(result: Mapping[str, Any]) -> dict[str, str]:
    """Return a result's fields as text; names in a nested table are preceded by the field's."""
    texts = {}
    for key, value in result.items():
        if key in HIDDEN_FIELDS:
            continue
        if isinstance(value, Mapping):
            texts |= {f"{key}: {name}": cell(item) for name, item in value.items()}
        else:
            texts[key.replace("_", " ")] = cell(value)
    return texts


def cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
