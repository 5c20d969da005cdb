"""Pages of HTML that stand alone, rendered from the templates of this package."""

import base64
import difflib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from lclm_jax.files.atomic import write_whole
from lclm_jax.reports import formats
from lclm_jax.reports.statements import describe_gap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Picture:
    """A picture inside the page, with its text for readers who cannot see it."""

    source: str  # a data URI of SVG
    description: str
    caption: str

    def write(self, path: Path):
        """Write the picture as a file of SVG."""
        write_whole(path, base64.b64decode(self.source.partition(",")[2]).decode())


def picture(figure: "Figure", description: str, caption: str = "") -> Picture:
    return Picture(as_data_uri(figure), description, caption)


def as_data_uri(figure: "Figure") -> str:
    """Return a figure as SVG inside a URI, so that the page needs no second file.

    Equal figures give equal URIs.
    """
    from matplotlib import rc_context

    file = io.BytesIO()
    with rc_context({"svg.hashsalt": "lclm_jax"}):  # names inside the SVG are random otherwise
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"


def environment(*directories: Path) -> Environment:
    """Return the settings of all templates; text is escaped and unknown names are errors.

    `directories` hold templates beside those of this package.
    """
    result = Environment(
        loader=FileSystemLoader([*directories, TEMPLATES]),
        autoescape=lambda name: name is None or not name.endswith(".md.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    names = (
        *("number", "percent", "interval", "duration", "byte_count", "big_count"),
        *("length_range", "upper_first", "count", "score", "difference", "verdict", "short_count"),
    )
    result.filters.update({name: getattr(formats, name) for name in names})
    result.filters |= {"mark_differences": mark_differences, "gap_closed": describe_gap}
    return result


def render(name: str, directories: Sequence[Path] = (), **values: Any) -> str:
    return environment(*directories).get_template(name).render(**values)


def mark_differences(original: str, written: str) -> tuple[Markup, Markup]:
    """Return both texts with the words that the other lacks, in this order, inside `<mark>`."""
    # Words are at even places, the white space between them at odd ones.
    texts = [re.split(r"(\s+)", text) for text in (original, written)]
    words = [parts[::2] for parts in texts]
    blocks = difflib.SequenceMatcher(None, *words, autojunk=False).get_matching_blocks()
    shared = (
        {block.a + offset for block in blocks for offset in range(block.size)},
        {block.b + offset for block in blocks for offset in range(block.size)},
    )
    first, second = map(_mark_others, texts, shared)
    return first, second


def _mark_others(parts: Sequence[str], shared: set[int]) -> Markup:
    marked = [
        escape(part)
        if place % 2 or not part or place // 2 in shared
        else Markup("<mark>{}</mark>").format(part)
        for place, part in enumerate(parts)
    ]
    return Markup("").join(marked)
