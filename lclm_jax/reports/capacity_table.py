"""What `launch.capacity` found on many slices, as a page of Markdown with two pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lclm_jax.capacity.measure import Figures
from lclm_jax.config import ModelConfig
from lclm_jax.costs.work import compressed_cost, uncompressed_cost
from lclm_jax.reports import plots
from lclm_jax.reports.capacity import GIB, NOTE, in_span, number_of_calls

Fits = Sequence[
    tuple[str, Figures]
]  # arguments of `launch.capacity` after --slice, and what it found
Growth = dict[str, dict[int, float]]  # name of a line -> size -> GiB
COMMAND = "`python -m launch.capacity --config configs/lclm_0p6b_4b_16x.py --slice`"
UNKNOWN = "–"

PAGE = """# Does it fit?

Made by `make capacity-report`, which runs the commands below ({compilers}). **{note}**

Peak is the larger of the compiler's and what is handed in and out. Products are matrix products, attention excluded from both
sides; bytes sent are those of one chip in a step, each collective counted by the larger of its operand and its result; the FSDP
budget is 6 bytes a parameter.

## Training, the stage that trains everything on the pre-training mix

{training}

A row is {positions:,} decoder positions and, as the recipe's token counts have it, {windows} encoder windows of 1,024 tokens;
with 128 windows half of the positions are latents. Days and chip-hours are of the stage's token budget, {budget:.2f}B positions,
whatever the batch.

## Serving a million tokens

{serving}

A call of `compress` is a pass over 16 windows, one of `prefill` the last chunk of 4,096 positions, one of `decode` a token; the
cache is the one that generation allocates for the latents, tags, a question and an answer. The whole context adds up its passes
or chunks. A call takes at least the longest of its products at a chip's peak, its bytes at the peak of the memory and what it
sends, and about their sum where nothing overlaps; the bytes assume that elementwise work is fused into the products, kernels,
gathers and updates beside it.

## As the context grows

![Memory over context length](capacity_contexts.png)

{contexts}

GiB. The weights are part of the peak; the caches are by themselves.

## As the slice grows

![Memory and bytes over chips](capacity_chips.png)

{chips}

GiB of a chip of a v5p, {rows} rows each. Copies of the model (`mesh.data`): {copies}.
"""


def write_report(directory: Path, themes: Mapping[str, Fits], model: ModelConfig):
    """Writes capacity.md and its pictures, of the themes training, serving, contexts and chips."""
    contexts, chips = contexts_growth(themes["contexts"], model), chips_growth(themes["chips"])
    plots.plot_growth(contexts, "context, tokens", "GiB of a chip").savefig(
        directory / "capacity_contexts.png", dpi=140
    )
    plots.plot_growth(chips, "chips", "GiB of a chip").savefig(
        directory / "capacity_chips.png", dpi=140
    )
    recipe, sizes = themes["training"][0][1], [figures for _, figures in themes["chips"]]
    text = PAGE.format(
        note=NOTE,
        compilers="; ".join(
            sorted({figures["compiler"] for some in themes.values() for _, figures in some})
        ),
        training=markdown([training_row(*one) for one in themes["training"]]),
        serving=markdown([serving_row(*one) for one in themes["serving"]]),
        contexts=markdown(growth_rows(contexts)),
        chips=markdown(growth_rows(chips)),
        positions=recipe["positions"],
        windows=recipe["windows"],
        budget=recipe["estimate"]["stage_positions"] / 1e9,
        rows=" or ".join(sorted({str(one["rows"] // one["chips"]) for one in sizes})),
        copies=", ".join(f"{one['mesh']['data']} on {one['chips']:,}" for one in sizes),
    )
    (directory / "capacity.md").write_text(text, encoding="utf-8")


def training_row(arguments: str, figures: Figures) -> dict[str, str]:
    estimate, sent = figures["estimate"], figures["collective_bytes"]
    row = _fits(arguments, figures) | {
        "products / model's": f"{figures['matmul_flops'] / figures['model_flops']:.3f}",
        "sent (GiB)": UNKNOWN,
        "/ FSDP budget": UNKNOWN,
        "in f32 (GiB)": UNKNOWN,
        f"step at {estimate['mfu']:.0%} MFU": f"{estimate['step_seconds']:.1f} s",
        "stage: days, chip-hours": f"{estimate['stage_days']:.1f}, {estimate['stage_chip_hours']:,.0f}",
        "compiled in": f"{figures['compile_seconds']:.0f} s",
    }
    if sent is not None:
        row["sent (GiB)"] = f"{sent / GIB:.1f}"
        row["/ FSDP budget"] = f"{sent / figures['fsdp_budget_bytes']:.2f}"
        wide = sum(one["bytes"] for one in figures["collectives"] if one["type"] == "f32")
        row["in f32 (GiB)"] = f"{wide / GIB:.3f}"
    return row


def serving_row(arguments: str, figures: Figures) -> dict[str, str]:
    estimate, whole = figures["estimate"], UNKNOWN
    if figures["fits"] and "whole" in estimate:
        whole = f"{in_span(estimate['whole'])} in {number_of_calls(estimate['whole'])}"
    return _fits(arguments, figures) | {
        "a call at peak speeds": in_span(estimate) if figures["fits"] else UNKNOWN,
        "the whole context": whole,
        "compiled in": f"{figures['compile_seconds']:.0f} s",
    }


def _fits(arguments: str, figures: Figures) -> dict[str, str]:
    parts = " / ".join(
        f"{figures[f'{name}_bytes'] / GIB:.2f}" for name in ("argument", "temp", "peak")
    )
    return {
        COMMAND: f"`{arguments}`",
        "fits": "yes" if figures["fits"] else "**no**",
        "arguments / temporaries / peak (GiB)": f"{parts} of {figures['hbm_bytes'] / GIB:.1f}",
    }


def contexts_growth(some: Fits, model: ModelConfig) -> Growth:
    """GiB over the length of a context: what the compiler says of decoding, and caches counted from shapes."""
    peaks = {figures["context"]: figures["peak_bytes"] / GIB for _, figures in some}
    return {
        "decoding after latents, peak (compiled, v6e:1x1)": peaks,
        "KV cache of latents (counted)": {
            context: compressed_cost(context, model).cache_bytes / GIB for context in peaks
        },
        "KV cache of the text (counted)": {
            context: uncompressed_cost(context, model).cache_bytes / GIB for context in peaks
        },
    }


def chips_growth(some: Fits) -> Growth:
    """GiB of a chip over chips, each with the same rows."""
    found = {figures["chips"]: figures for _, figures in some}
    return {
        "peak memory": {chips: one["peak_bytes"] / GIB for chips, one in found.items()},
        "arguments": {chips: one["argument_bytes"] / GIB for chips, one in found.items()},
        "sent in a step": {
            chips: one["collective_bytes"] / GIB
            for chips, one in found.items()
            if one["collective_bytes"]
        },
    }


def growth_rows(lines: Growth) -> list[dict[str, str]]:
    sizes = sorted({size for line in lines.values() for size in line})
    return [
        {
            "": f"{size:,}",
            **{
                name: f"{line[size]:.2f}" if size in line else UNKNOWN
                for name, line in lines.items()
            },
        }
        for size in sizes
    ]


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """A table; the names of the first row are its heading."""
    heading = [" | ".join(rows[0]), " | ".join("---" for _ in rows[0])]
    return "\n".join(
        f"| {line} |" for line in [*heading, *(" | ".join(row.values()) for row in rows)]
    )
