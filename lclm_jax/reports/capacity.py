"""Figures of a program in words: sections of named values for the terminal, and a page that stands alone."""

from collections.abc import Sequence
from pathlib import Path

from lclm_jax.capacity.measure import Figures
from lclm_jax.reports import plots
from lclm_jax.reports.findings import duration
from lclm_jax.reports.html import Html, bullets, document, element, table

GIB = 2**30
NOTE = "Compiler's figures and estimates: nothing was executed."
Section = list[tuple[str, str]]  # names and values


def verdict(figures: Figures) -> str:
    """Whether it fits, in one sentence."""
    peak, hbm = figures["peak_bytes"] / GIB, figures["hbm_bytes"] / GIB
    what = f"{figures['job']} on {figures['slice']}"
    if figures["fits"]:
        return f"{what} fits: {peak:.1f} of {hbm:.1f} GiB of every chip at its peak"
    return f"{what} does not fit: it needs {peak:.1f} GiB of every chip, which has {hbm:.1f}"


def sections(figures: Figures) -> dict[str, Section]:
    """Everything that is known, by theme."""
    return {
        "program": _program(figures),
        "memory of a chip": _memory(figures),
        "matrix products of a call": _products(figures),
        "sent by a chip in a call": _sent(figures),
        "estimate": _estimate(figures),
    }


def _program(figures: Figures) -> Section:
    trained = ("stage", "rows", "positions", "windows", "ratio", "micro_batches", "remat")
    names = (*trained, "context", "latents", "chunk", "filled", "cached", "cache")
    told = [(name.replace("_", " "), f"{figures[name]:,}" if isinstance(figures[name], int) else figures[name])
            for name in names if name in figures]  # fmt: skip
    return [
        *told,
        ("mesh", _mesh(figures)),
        ("compiler", f"{figures['compiler']}, {figures['compile_seconds']:.0f} s"),
    ]


def _mesh(figures: Figures) -> str:
    return (
        ", ".join(f"{axis} {size}" for axis, size in figures["mesh"].items() if size > 1)
        or "one chip"
    )


def _memory(figures: Figures) -> Section:
    parts = {
        "arguments": "argument",
        "temporaries": "temp",
        "peak": "peak",
        "what it has (HBM)": "hbm",
    }
    return [(name, f"{figures[f'{part}_bytes'] / GIB:.2f} GiB") for name, part in parts.items()]


def _products(figures: Figures) -> Section:
    total, model = figures["matmul_flops"], figures["model_flops"]
    attention = figures["attention_flops"]
    rows = [(source, f"{count:.3e}") for source, count in figures["matmul_flops_by_source"].items()]
    rows += [
        ("all, attention excluded", f"{total:.3e}"),
        ("the model's", f"{model:.3e}"),
        ("ratio", f"{total / model:.3f}"),
    ]
    how = "in products" if attention["products"] >= attention["done"] else "in a kernel"
    done = ("attention, done", f"{attention['done']:.3e} {how}")
    return [*rows, ("attention, the model's", f"{attention['model']:.3e}"), done]


def _sent(figures: Figures) -> Section:
    if figures["collectives"] is None:
        return [("all", "unknown: the compiler gave up")]
    rows = [
        (f"{one['kind']} of {one['type']} over {one['axes']}", f"{one['bytes'] / GIB:.3f} GiB")
        for one in figures["collectives"]
        if one["bytes"] >= 2**20
    ]
    total, budget = figures["collective_bytes"], figures["fsdp_budget_bytes"]
    rows.append(("all", f"{total / GIB:.3f} GiB"))
    if budget:
        rows.append(("FSDP budget, 6 bytes a parameter", f"{budget / GIB:.3f} GiB"))
        rows.append(("ratio", f"{total / budget:.3f}"))
    return rows


def _estimate(figures: Figures) -> Section:
    told, assumed = figures["estimate"], figures["estimate"]["assumptions"]
    low, high = told["call_seconds"]
    rows = [
        ("assumed of a chip", _assumed(assumed)),
        ("computing", in_seconds(told["compute_seconds"])),
        (f"moving {figures['moved_bytes'] / GIB:.2f} GiB to and from memory", in_seconds(told["memory_seconds"])),
        ("sending", in_seconds(told["network_seconds"])),
        ("a call at peak speeds", f"{in_seconds(low)} (all overlaps) to {in_seconds(high)} (nothing does)"),
    ]  # fmt: skip
    if whole := told.get("whole"):
        rows.append((f"the whole context, {number_of_calls(whole)}", in_span(whole)))
    if "mfu" not in told:
        return [*rows, ("tokens a second", f"{told['tokens_per_second']:,.0f}")]
    return [
        *rows,
        (f"a step at {told['mfu']:.0%} of peak", in_seconds(told["step_seconds"])),
        ("decoder positions a second and chip", f"{told['positions_per_second_per_chip']:,.0f}"),
        ("encoder tokens a second and chip", f"{told['encoder_tokens_per_second_per_chip']:,.0f}"),
        (
            "the stage",
            f"{told['stage_steps']:,} steps, {told['stage_positions'] / 1e9:.2f}B positions",
        ),
        ("", f"{told['stage_days']:.1f} days, {told['stage_chip_hours']:,.0f} chip-hours"),
    ]


def _assumed(speeds: Figures) -> str:
    giga = {
        name: speeds[f"{name}_bytes_per_second"] / 1e9 for name in ("memory", "link", "network")
    }
    told = ", ".join(f"{name} {speed:.4g}" for name, speed in giga.items())
    return f"{speeds['peak_flops'] / 1e12:.0f} TFLOP/s; GB/s of {told}"


def in_seconds(seconds: float) -> str:
    return (
        duration(seconds)
        if seconds >= 100
        else f"{seconds:.3g} s"
        if seconds >= 1
        else f"{1e3 * seconds:.3g} ms"
    )


def in_span(estimate: Figures) -> str:
    """Seconds of a call, from everything overlapping to nothing."""
    return " to ".join(map(in_seconds, estimate["call_seconds"]))


def number_of_calls(whole: Figures) -> str:
    return "1 call" if whole["calls"] == 1 else f"{whole['calls']} calls"


def choice(figures: Figures) -> dict[str, str]:
    """One of several choices, as a row of a table."""
    trained = (
        {"micro-batches": str(figures["micro_batches"]), "remat": figures["remat"]}
        if figures["job"] == "train"
        else {}
    )
    return {
        "mesh": _mesh(figures),
        **trained,
        "peak": f"{figures['peak_bytes'] / GIB:.1f} GiB"
        + ("" if figures["fits"] else ", too much"),
        "sent": ""
        if figures["collective_bytes"] is None
        else f"{figures['collective_bytes'] / GIB:.1f} GiB",
        "a call at peak speeds": in_span(figures["estimate"]) if figures["fits"] else "",
    }


def write_page(path: Path, command: str, tried: Sequence[Figures], advice: Sequence[str]):
    """Writes one HTML file: the first of what was tried in full, all of it as a table. Raises ReportError without matplotlib."""
    first = tried[0]
    cards = [
        (f"{first['peak_bytes'] / GIB:.1f}", f"of {first['hbm_bytes'] / GIB:.1f} GiB at the peak"),
        (f"{first['matmul_flops'] / first['model_flops']:.2f}", "matrix products over the model's"),
        (
            "–" if first["collective_bytes"] is None else f"{first['collective_bytes'] / GIB:.1f}",
            "GiB sent by a chip in a call",
        ),
        (
            in_seconds(first["estimate"]["call_seconds"][1]),
            "a call at peak speeds, nothing overlapping",
        ),
    ]
    boxes = [
        element("div", element("b", figure), element("span", label), class_="card")
        for figure, label in cards
    ]
    picture = plots.as_data_uri(plots.plot_memory(first))
    header = element(
        "header",
        element("h1", f"{first['job']} on {first['slice']}"),
        element(
            "section",
            element("p", verdict(first), class_="verdict"),
            bullets(advice),
            element("p", element("code", command), ". ", NOTE, class_="note"),
            element("div", *boxes, class_="cards"),
            element(
                "figure",
                element(
                    "img",
                    src=picture,
                    alt="Arguments, temporaries and peak beside the memory of a chip",
                ),
            ),
        ),
    )
    body = [element("section", element("h2", title[0].upper() + title[1:]), table(("", ""), rows))
            for title, rows in sections(first).items()]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        document(f"Fit {first['slice']}", header, *_choices(tried), *body), encoding="utf-8"
    )


def _choices(tried: Sequence[Figures]) -> list[Html]:
    if len(tried) == 1:
        return []
    rows = [choice(figures) for figures in tried]
    return [
        element(
            "section",
            element("h2", "Choices, the best first"),
            table(list(rows[0]), [list(row.values()) for row in rows]),
        )
    ]
