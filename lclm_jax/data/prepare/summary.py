"""Summary of a manifest for the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from lclm_jax.data.shards import REJECTIONS


def summary_table(manifest: Mapping[str, Any]) -> Table:
    """Return a table with one row a source: rows, examples, tokens, and what was not used."""
    table = Table("source", "kind", "rows", "examples", "held out", "tokens", "refused", "not read")
    for name, source in manifest["sources"].items():
        examples = source["examples"]
        table.add_row(
            name,
            source["kind"],
            f"{source['rows']:,}",
            f"{examples['train']:,}",
            f"{examples['held']:,}",
            f"{sum(source['tokens'].values()):,}",
            _count_reasons(source["rejected"]),
            _count_reasons(source["unread"]),
        )
    return table


def _count_reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "none"


def describe_output(manifest: Mapping[str, Any], directory: Path) -> str:
    """Return lines that name the files of prepared data, and of all rejections if there are any."""
    sources = manifest["sources"].values()
    lines = [
        f"wrote {directory.resolve()}; look at it by python -m launch.inspect_data {directory}\n"
    ]
    if any(source["rejected"] or source["unread"] for source in sources):
        file = directory / REJECTIONS
        lines.insert(0, f"every refused row and unread file, with its reason: {file}\n")
    return "".join(lines)
