"""Reports on compiled programs: rows for the terminal, a page, and docs/capacity.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from lclm_jax.capacity.measure import Figures
from lclm_jax.config import ModelConfig
from lclm_jax.costs.work import compressed_cost, uncompressed_cost
from lclm_jax.reports import plots
from lclm_jax.reports.formats import UNKNOWN, duration
from lclm_jax.reports.pages import picture, render

GIB = 2**30
MIN_COLLECTIVE_BYTES = 2**20  # smaller ones are not listed
NOTE = "Compiler's figures and estimates: nothing was executed."
COMMAND = "`python -m launch.capacity --config configs/lclm_0p6b_4b_16x.py --slice`"
Rows = list[tuple[str, str]]  # name and value
Results = Sequence[tuple[str, Figures]]  # arguments of `launch.capacity` after --slice, result
Growth = dict[str, dict[int, float]]  # name of a line -> size -> GiB


def describe_fit(figures: Figures) -> str:
    """State in one sentence whether a program fits its slice."""
    peak, memory = gib(figures["peak_bytes"], 1), gib(figures["hbm_bytes"], 1)
    program = f"{figures['job']} on {figures['slice']}"
    if figures["fits"]:
        return f"{program} fits: {peak} of {memory} GiB of every chip at its peak"
    return f"{program} does not fit: it needs {peak} GiB of every chip, which has {memory}"


def sections(figures: Figures) -> dict[str, Rows]:
    """Return everything that is known of a program, by topic."""
    return {
        "program": _program(figures),
        "memory of a chip": _memory(figures),
        "matrix products of a call": _products(figures),
        "sent by a chip in a call": _sent(figures),
        "estimate": _estimate(figures),
    }


def _program(figures: Figures) -> Rows:
    trained = ("stage", "rows", "positions", "windows", "ratio", "micro_batches", "remat")
    rows = []
    for name in (*trained, "context", "latents", "chunk", "filled", "cached", "cache"):
        if name in figures:
            value = figures[name]
            text = f"{value:,}" if isinstance(value, int) else value
            rows.append((name.replace("_", " "), text))
    compiler = f"{figures['compiler']}, {figures['compile_seconds']:.0f} s"
    return [*rows, ("mesh", _describe_mesh(figures)), ("compiler", compiler)]


def _describe_mesh(figures: Figures) -> str:
    axes = [f"{axis} {size}" for axis, size in figures["mesh"].items() if size > 1]
    return ", ".join(axes) or "one chip"


def _memory(figures: Figures) -> Rows:
    names = {"arguments": "argument", "temporaries": "temp", "peak": "peak", "capacity": "hbm"}
    return [(name, f"{gib(figures[f'{key}_bytes'])} GiB") for name, key in names.items()]


def _products(figures: Figures) -> Rows:
    total, model = figures["matmul_flops"], figures["model_flops"]
    attention = figures["attention_flops"]
    by_source = figures["matmul_flops_by_source"].items()
    place = "in products" if attention["products"] >= attention["done"] else "in a kernel"
    return [
        *((source, f"{count:.3e}") for source, count in by_source),
        ("all, attention excluded", f"{total:.3e}"),
        ("the model's", f"{model:.3e}"),
        ("ratio", f"{total / model:.3f}"),
        ("attention, the model's", f"{attention['model']:.3e}"),
        ("attention, done", f"{attention['done']:.3e} {place}"),
    ]


def _sent(figures: Figures) -> Rows:
    if figures["collectives"] is None:
        return [("all", "unknown: the program did not compile")]
    rows = [
        (
            f"{collective['kind']} of {collective['type']} over {collective['axes']}",
            f"{gib(collective['bytes'], 3)} GiB",
        )
        for collective in figures["collectives"]
        if collective["bytes"] >= MIN_COLLECTIVE_BYTES
    ]
    total, budget = figures["collective_bytes"], figures["fsdp_budget_bytes"]
    rows.append(("all", f"{gib(total, 3)} GiB"))
    if budget:
        rows.append(("FSDP budget, 6 bytes per parameter", f"{gib(budget, 3)} GiB"))
        rows.append(("ratio", f"{total / budget:.3f}"))
    return rows


def _estimate(figures: Figures) -> Rows:
    estimate = figures["estimate"]
    low, high = (format_seconds(seconds) for seconds in estimate["call_seconds"])
    moved = gib(figures["moved_bytes"])
    rows = [
        ("assumed of a chip", _describe_speeds(estimate["assumptions"])),
        ("computing", format_seconds(estimate["compute_seconds"])),
        (f"moving {moved} GiB to and from memory", format_seconds(estimate["memory_seconds"])),
        ("sending", format_seconds(estimate["network_seconds"])),
        ("a call at peak speeds", f"{low} (all overlaps) to {high} (nothing does)"),
    ]
    if whole := estimate.get("whole"):
        rows.append((f"the whole context, {_count_calls(whole)}", format_call(whole)))
    if "mfu" not in estimate:
        return [*rows, ("tokens per second", f"{estimate['tokens_per_second']:,.0f}")]
    positions = estimate["positions_per_second_per_chip"]
    tokens = estimate["encoder_tokens_per_second_per_chip"]
    steps, total = estimate["stage_steps"], estimate["stage_positions"] / 1e9
    days, hours = estimate["stage_days"], estimate["stage_chip_hours"]
    step = f"a step at {estimate['mfu']:.0%} of peak"
    return [
        *rows,
        (step, format_seconds(estimate["step_seconds"])),
        ("decoder positions per second and chip", f"{positions:,.0f}"),
        ("encoder tokens per second and chip", f"{tokens:,.0f}"),
        ("the stage", f"{steps:,} steps, {total:.2f}B positions"),
        ("", f"{days:.1f} days, {hours:,.0f} chip-hours"),
    ]


def _describe_speeds(speeds: Figures) -> str:
    names = ("memory", "link", "network")
    by_name = ", ".join(f"{name} {speeds[f'{name}_bytes_per_second'] / 1e9:.4g}" for name in names)
    return f"{speeds['peak_flops'] / 1e12:.0f} TFLOP/s; GB/s of {by_name}"


def gib(size: float, digits: int = 2) -> str:
    return f"{size / GIB:.{digits}f}"


def format_seconds(seconds: float) -> str:
    if seconds >= 100:
        return duration(seconds)
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def format_call(estimate: Figures) -> str:
    """Return the time of a call, from everything overlapping to nothing."""
    return " to ".join(map(format_seconds, estimate["call_seconds"]))


def _count_calls(whole: Figures) -> str:
    return "1 call" if whole["calls"] == 1 else f"{whole['calls']} calls"


def choice_row(figures: Figures) -> dict[str, str]:
    """Return one of several ways to run a program as a row of a table."""
    row = {"mesh": _describe_mesh(figures)}
    if figures["job"] == "train":
        row |= {"micro-batches": str(figures["micro_batches"]), "remat": figures["remat"]}
    fits, sent = figures["fits"], figures["collective_bytes"]
    return row | {
        "peak": f"{gib(figures['peak_bytes'], 1)} GiB{'' if fits else ', too much'}",
        "sent": "" if sent is None else f"{gib(sent, 1)} GiB",
        "a call at peak speeds": format_call(figures["estimate"]) if fits else "",
    }


def figures_table(figures: Figures) -> Table:
    """Return everything that is known of a program as a table for the terminal."""
    table = Table(show_header=False)
    for title, rows in sections(figures).items():
        table.add_row(f"[bold]{title}[/bold]", "")
        for name, value in rows:
            table.add_row(f"  {name}", str(value))
        table.add_section()
    return table


def choices_table(tried: Sequence[Figures]) -> Table:
    """Return several ways to run a program as a table for the terminal."""
    rows = [choice_row(figures) for figures in tried]
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*row.values())
    return table


def write_page(path: Path, command: str, tried: Sequence[Figures], advice: Sequence[str]):
    """Write a page about the first program that was tried, with a table of all of them.

    Raises ReportError without matplotlib.
    """
    first = tried[0]
    parts = {"arguments": "argument", "temporaries": "temp", "peak": "peak"}
    sizes = {name: first[f"{key}_bytes"] / GIB for name, key in parts.items()}
    memory = picture(
        plots.plot_memory(sizes, first["hbm_bytes"] / GIB),
        "Arguments, temporaries and peak beside the memory of a chip",
    )
    sent, choices = first["collective_bytes"], [choice_row(figures) for figures in tried]
    page = render(
        "capacity.html.j2",
        program=first,
        verdict=describe_fit(first),
        advice=advice,
        command=command,
        note=NOTE,
        cards=[
            (gib(first["peak_bytes"], 1), f"of {gib(first['hbm_bytes'], 1)} GiB at the peak"),
            (
                f"{first['matmul_flops'] / first['model_flops']:.2f}",
                "matrix products over the model's",
            ),
            (UNKNOWN if sent is None else gib(sent, 1), "GiB sent by a chip in a call"),
            (
                format_seconds(first["estimate"]["call_seconds"][1]),
                "a call at peak speeds, nothing overlapping",
            ),
        ],
        memory=memory,
        choices=(list(choices[0]), [list(choice.values()) for choice in choices]),
        sections=sections(first),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def write_summary(directory: Path, results: Mapping[str, Results], model: ModelConfig):
    """Write capacity.md and its pictures from results on training, serving, contexts and chips."""
    contexts = _context_growth(results["contexts"], model)
    chips = _chip_growth(results["chips"])
    for name, growth, xlabel in (
        ("capacity_contexts.png", contexts, "context, tokens"),
        ("capacity_chips.png", chips, "chips"),
    ):
        figure = plots.plot_growth(growth, xlabel, ylabel="GiB per chip")
        figure.savefig(directory / name, dpi=140)
    grown = [figures for _, figures in results["chips"]]
    compilers = {figures["compiler"] for theme in results.values() for _, figures in theme}
    rows_per_chip = {str(figures["rows"] // figures["chips"]) for figures in grown}
    text = render(
        "capacity.md.j2",
        note=NOTE,
        compilers=sorted(compilers),
        recipe=results["training"][0][1],
        training=markdown_table([_training_row(*result) for result in results["training"]]),
        serving=markdown_table([_serving_row(*result) for result in results["serving"]]),
        contexts=markdown_table(_growth_rows(contexts)),
        chips=markdown_table(_growth_rows(chips)),
        rows_per_chip=sorted(rows_per_chip),
        grown=grown,
    )
    (directory / "capacity.md").write_text(text, encoding="utf-8")


def _training_row(arguments: str, figures: Figures) -> dict[str, str]:
    estimate, sent = figures["estimate"], figures["collective_bytes"]
    total = share = wide = UNKNOWN
    if sent is not None:
        total = gib(sent, 1)
        share = f"{sent / figures['fsdp_budget_bytes']:.2f}"
        types = figures["collectives"]
        wide = gib(sum(sent["bytes"] for sent in types if sent["type"] == "f32"), 3)
    return _memory_row(arguments, figures) | {
        "products / model's": f"{figures['matmul_flops'] / figures['model_flops']:.3f}",
        "sent (GiB)": total,
        "/ FSDP budget": share,
        "in f32 (GiB)": wide,
        f"step at {estimate['mfu']:.0%} MFU": f"{estimate['step_seconds']:.1f} s",
        "stage: days, chip-hours": (
            f"{estimate['stage_days']:.1f}, {estimate['stage_chip_hours']:,.0f}"
        ),
        "compiled in": f"{figures['compile_seconds']:.0f} s",
    }


def _serving_row(arguments: str, figures: Figures) -> dict[str, str]:
    estimate, whole = figures["estimate"], UNKNOWN
    if figures["fits"] and "whole" in estimate:
        whole = f"{format_call(estimate['whole'])} in {_count_calls(estimate['whole'])}"
    return _memory_row(arguments, figures) | {
        "a call at peak speeds": format_call(estimate) if figures["fits"] else UNKNOWN,
        "the whole context": whole,
        "compiled in": f"{figures['compile_seconds']:.0f} s",
    }


def _memory_row(arguments: str, figures: Figures) -> dict[str, str]:
    parts = " / ".join(gib(figures[f"{name}_bytes"]) for name in ("argument", "temp", "peak"))
    return {
        COMMAND: f"`{arguments}`",
        "fits": "yes" if figures["fits"] else "**no**",
        "arguments / temporaries / peak (GiB)": f"{parts} of {gib(figures['hbm_bytes'], 1)}",
    }


def _context_growth(results: Results, model: ModelConfig) -> Growth:
    """Return compiled memory of decoding, and caches counted from shapes, by context length."""
    peaks = {figures["context"]: figures["peak_bytes"] / GIB for _, figures in results}
    latents = {length: compressed_cost(length, model).cache_bytes / GIB for length in peaks}
    text = {length: uncompressed_cost(length, model).cache_bytes / GIB for length in peaks}
    return {
        "decoding after latents, peak (compiled, v6e:1x1)": peaks,
        "KV cache of latents (counted)": latents,
        "KV cache of the text (counted)": text,
    }


def _chip_growth(results: Results) -> Growth:
    """Return bytes per chip by the number of chips, each with the same number of rows."""
    lines = {"peak memory": "peak", "arguments": "argument", "sent in a step": "collective"}
    return {
        line: {
            figures["chips"]: figures[f"{key}_bytes"] / GIB
            for _, figures in results
            if figures[f"{key}_bytes"]
        }
        for line, key in lines.items()
    }


def _growth_rows(lines: Growth) -> list[dict[str, str]]:
    sizes = sorted({size for line in lines.values() for size in line})
    return [
        {"": f"{size:,}"}
        | {name: f"{line[size]:.2f}" if size in line else UNKNOWN for name, line in lines.items()}
        for size in sizes
    ]


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return a table in Markdown with the keys of the first row as its headings."""
    lines = [rows[0], ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
