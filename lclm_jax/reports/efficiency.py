"""Seconds to the first token and peak memory, as a table with the paper's figures."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from lclm_jax.evaluation.paper import DEVICE, FIRST_TOKENS, FIRST_TOKENS_SOURCE
from lclm_jax.reports.formats import UNKNOWN, byte_count, count, number

Entry = Mapping[str, Any]
NOTE = (
    "Seconds: mean ± standard deviation of the repeats; peak of the process where devices do not "
    "count their memory, < where it needed as much before. Compiler's figures are estimates at "
    f"peak speeds. Paper: {FIRST_TOKENS_SOURCE}."
)


def tabulate_first_tokens(rows: Sequence[Entry]) -> Table:
    """Return a table of the rows of `evaluation.efficiency.measure_efficiency`."""
    caption = "\n".join([*list_failures(rows), NOTE])
    table = Table("view", caption=caption, caption_justify="left")
    columns = ("tokens", "first token, s", "compress, s", "prefill, s", "peak", "rounds", "windows")
    for column in columns:
        table.add_column(column, justify="right")
    for column in ("device", "source", f"paper, {DEVICE}"):
        table.add_column(column)
    for row in rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: Entry) -> Iterable[str]:
    deviation = row["standard_deviation"]
    first = number(row["first_token_seconds"])
    rounds = f"{row['warm_ups']} + {row['repeats']}"
    peak = row["peak_bytes"]
    return (
        row["view"],
        count(row["length"]),
        first if deviation is None else f"{first} ± {number(deviation, '.2g')}",
        number(row["compress_seconds"]),
        number(row["prefill_seconds"]),
        UNKNOWN if peak is None else f"{'' if row['peak_is_exact'] else '< '}{byte_count(peak)}",
        rounds if row["source"] == "measured" else UNKNOWN,
        UNKNOWN if row["windows_at_once"] is None else count(row["windows_at_once"]),
        row["device"],
        row["source"],
        _paper(row["view"], row["length"]),
    )


def _paper(view: str, length: int) -> str:
    known = FIRST_TOKENS.get(view, {}).get(length)
    return UNKNOWN if known is None else f"{number(known[0])} s, {byte_count(known[1])}"


def list_failures(rows: Iterable[Entry]) -> list[str]:
    """Return a line for every row without figures, with the reason."""
    return [
        f"{row['view']}, {count(row['length'])} tokens on {row['device']}: {row['failure']}"
        for row in rows
        if row["failure"]
    ]
