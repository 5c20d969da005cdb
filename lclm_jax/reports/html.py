"""HTML for a page that stands alone: elements whose text is escaped unless it already is HTML, and the page's style."""

import difflib
import html
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from lclm_jax.reports.plots import as_data_uri

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VOID = ("br", "img", "meta")


class Html(str):
    """Text that is HTML already. Any other text is escaped when it becomes part of an element."""


def element(name: str, /, *children: Any, **attributes: Any) -> Html:
    """`<name attributes>children</name>`; an attribute that is a Python word is spelled with a trailing underscore.

    >>> element("p", "a < b", class_="note")
    '<p class="note">a &lt; b</p>'
    """
    settings = "".join(
        f' {key.rstrip("_")}="{html.escape(str(value))}"' for key, value in attributes.items()
    )
    if name in VOID:
        return Html(f"<{name}{settings}>")
    return Html(f"<{name}{settings}>{join(children)}</{name}>")


def join(children: Iterable[Any]) -> Html:
    return Html(
        "".join(child if isinstance(child, Html) else html.escape(str(child)) for child in children)
    )


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]], words: bool = False) -> Html:
    """A table that scrolls sideways where it is too wide; cells after the first line up right, or left where they are words."""
    head = element("tr", *(element("th", text, scope="col") for text in headings))
    body = [
        element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in rest))
        for first, *rest in rows
    ]
    return element(
        "div",
        element("table", element("thead", head), element("tbody", *body)),
        class_="wide words" if words else "wide",
    )


def section(title: str, *children: Html) -> Html:
    return element("section", element("h2", title), *children)


def note(text: str) -> Html:
    return element("p", text, class_="note")


def picture(caption: str, figure: "Figure", alt: str) -> Html:
    title = [element("figcaption", caption)] if caption else []
    return element("figure", *title, element("img", src=as_data_uri(figure), alt=alt))


def bullets(items: Iterable[Any]) -> Html:
    return element("ul", *(element("li", item) for item in items))


def document(title: str, *body: Html) -> Html:
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Html(STYLE)),
    )
    return join(
        (
            Html("<!doctype html>\n"),
            element("html", head, element("body", element("main", *body)), lang="en"),
            "\n",
        )
    )


def mark_differences(original: str, written: str) -> tuple[Html, Html]:
    """Both texts with the words that are not in the other, in order, inside `<mark>`."""
    pairs = [
        re.split(r"(\s+)", text) for text in (original, written)
    ]  # words at even places, the space between at odd ones
    words = [parts[::2] for parts in pairs]
    matcher = difflib.SequenceMatcher(None, *words, autojunk=False)
    same: tuple[set[int], set[int]] = (set(), set())
    for block in matcher.get_matching_blocks():
        same[0].update(range(block.a, block.a + block.size))
        same[1].update(range(block.b, block.b + block.size))
    first, second = (
        join(
            part if i % 2 or not part or i // 2 in kept else element("mark", part)
            for i, part in enumerate(parts)
        )
        for parts, kept in zip(pairs, same, strict=True)
    )
    return first, second


STYLE = """
:root { color-scheme: light; --ink: #1d2430; --soft: #5b6573; --line: #dfe3e8; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f7f9; color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 0 0 8px; }
h3 { font-size: 1rem; margin: 20px 0 6px; }
p, ul { margin: 8px 0; max-width: 78ch; }
li { margin: 4px 0; }
section { background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: 20px 24px; margin-top: 20px; }
.note { color: var(--soft); font-size: .9rem; }
.verdict { font-size: 1.15rem; font-weight: 600; }
.missing { border-left: 4px solid #E69F00; background: #fff8e8; padding: 8px 12px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; margin: 16px 0; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px; }
.card b { display: block; font-size: 1.5rem; line-height: 1.3; }
.card span { color: var(--soft); font-size: .88rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 12px 24px; }
.pictures.thirds { grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)); gap: 12px; }
.pictures.small { grid-template-columns: repeat(auto-fit, minmax(min(235px, 100%), 1fr)); gap: 12px; }
figure { margin: 8px 0; }
figure img { display: block; width: 100%; max-width: 600px; height: auto; }
figcaption { font-weight: 600; font-size: .95rem; margin-bottom: 4px; }
.wide { overflow-x: auto; margin: 12px 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 9px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child { text-align: left; padding-left: 0; }
thead th { white-space: normal; min-width: 4.6em; vertical-align: bottom; }
thead th { border-bottom: 2px solid var(--line); color: var(--soft); }
tbody th { font-weight: 500; }
.words th, .words td { text-align: left; vertical-align: top; }
.words td { white-space: normal; overflow-wrap: anywhere; }
.words td:not(:last-child) { min-width: 7em; }
.sample { border-top: 1px solid var(--line); padding: 12px 0; }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr)); gap: 12px; }
.label { color: var(--soft); font-size: .82rem; margin-bottom: 2px; }
.quote { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f7f9; border-radius: 6px; padding: 8px 10px;
  font: .86rem/1.5 ui-monospace, Menlo, Consolas, monospace; max-height: 22em; overflow-y: auto; }
mark { background: #ffe2b8; color: inherit; text-decoration: underline; text-decoration-color: #D55E00; border-radius: 2px; }
.answers td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.right { color: #00694c; }
.wrong { color: #a33f00; }
.context { background: #cfe3f5; border-radius: 2px; }
.trained { background: #d4efdf; border-radius: 2px; }
summary { cursor: pointer; font-weight: 600; margin: 8px 0; }
@media (max-width: 600px) { main { padding: 16px 10px 40px; } section { padding: 14px; } }
"""
