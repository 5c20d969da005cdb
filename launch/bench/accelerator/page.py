"""The page with everything that was measured: goals, pictures, and a table for every part."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launch.bench.accelerator import summary as figures
from launch.bench.accelerator.pictures import write_pictures
from launch.bench.accelerator.summary import PAPER, Summary, bound, shown
from lclm_jax.files.atomic import write_whole
from lclm_jax.reports.pages import render
from lclm_jax.reports.records import ReportError

GOALS = ("figure", "value", "goal", "verdict")
HIDDEN = ("rounds", "losses", "points", "packages", "allowed")  # in tables; they are in the files


def write_page(directory: Path, summary: Summary, pictures: bool = True) -> Path:
    """Writes index.html and its pictures; without matplotlib the page has none."""
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
        parts=list(part_sections(summary)),
    )
    file = directory / "index.html"
    write_whole(file, page)
    return file


def draw(directory: Path, summary: Summary) -> tuple[list[tuple[str, str]], str]:
    """File and caption of all pictures, or none of them and the reason."""
    try:
        return write_pictures(directory, summary), ""
    except ReportError as error:
        return [], str(error)


def title(summary: Summary) -> str:
    device = figures.measurements(summary.results, "peaks").get("machine", {}).get("device")
    return f"lclm_jax on {device or 'this machine'}"


def machine(summary: Summary) -> str:
    found = figures.measurements(summary.results, "peaks").get("machine", {})
    packages = ", ".join(f"{name} {number}" for name, number in found.get("packages", {}).items())
    parts = (found.get("nvidia"), f"Python {found.get('python', '?')}", packages, found.get("code"))
    return "; ".join(part for part in parts if part)


def goal_rows(summary: Summary) -> Iterator[tuple[str, str, str, str]]:
    for goal in summary.goals:
        yield goal.name, shown(goal.value, goal.unit), bound(goal), goal.verdict


def first_tokens(summary: Summary) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """At every ratio, beside the paper and beside what the operations alone would take."""
    peak = figures.measured_flops(summary.results)
    headings = ("context", "ratio", "latents", "compress", "prefill", "first token", "paper, H200")
    headings += ("FLOPs at peak", "compile", "peak memory", "paper, H200", "runs")
    rows = []
    for one in figures.measurements(summary.results, "first_token.compressed").values():
        paper = PAPER.get(one["tokens"]) if one["ratio"] == figures.RATIO else None
        rows.append(
            (
                f"{one['tokens']:,}",
                f"{one['ratio']}x",
                f"{one['latents']:,}",
                shown(one["compress_seconds"], "s"),
                shown(one["prefill_seconds"], "s"),
                shown(one["seconds"], "s"),
                shown(paper and paper[0], "s"),
                shown(one["flops"] / peak if peak else None, "s"),
                shown(one["compile_seconds"], "s"),
                gigabytes(one["peak_bytes"]),
                gigabytes(paper and paper[1]),
                str(one["repeats"]),
            )
        )
    return headings, rows


def steps(summary: Summary) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    headings = ("step", "seconds", "MFU, data sheet", "MFU, measured peak", "compile")
    headings += ("peak memory", "predicted", "ratio", "steps")
    rows = []
    for number in range(3):
        for name, one in figures.measurements(summary.results, f"training.{number}").items():
            timed = bool(one["seconds"])
            shares = [
                figures.scaled(figures.mfu(summary.results, one, measured), 100) if timed else None
                for measured in (False, True)
            ]
            rows.append(
                (
                    name,
                    shown(one["seconds"], "s") if timed else "does not fit",
                    shown(shares[0], "%"),
                    shown(shares[1], "%"),
                    shown(one["compile_seconds"], "s"),
                    gigabytes(one["peak_bytes"]),
                    gigabytes(one["predicted_peak_bytes"]),
                    shown(one["peak_over_predicted"]),
                    str(one["steps"]),
                )
            )
    return headings, rows


def gigabytes(size: float | None) -> str:
    return shown(figures.scaled(size, 1e-9), "GB")


def part_sections(summary: Summary) -> Iterator[dict[str, Any]]:
    """Everything every part has measured, and why it lacks what it lacks."""
    for name, found in summary.results.items():
        measured = found["measurements"]
        keys = list(dict.fromkeys(key for one in measured.values() for key in cells(one)))
        rows = [
            (what, *(cells(one).get(key, "") for key in keys)) for what, one in measured.items()
        ]
        missing = [
            f"{what}\n{text}"
            for kind in ("errors", "skipped")
            for what, text in found[kind].items()
        ]
        yield {"name": name, "table": (("measurement", *keys), rows), "missing": missing}


def cells(result: Mapping[str, Any]) -> dict[str, str]:
    """A result's fields as text; those of a field that is a table by itself get its name."""
    found = {}
    for key, value in result.items():
        if key in HIDDEN:
            continue
        if isinstance(value, Mapping):
            found |= {f"{key}: {name}": cell(one) for name, one in value.items()}
        else:
            found[key.replace("_", " ")] = cell(value)
    return found


def cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
