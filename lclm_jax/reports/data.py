"""The page of prepared data: figures of its survey as tables and pictures, and real examples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lclm_jax.config import ModelConfig
from lclm_jax.data.records import Context, Plain, Span, count_latents
from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.reports import plots
from lclm_jax.reports.findings import big_count
from lclm_jax.reports.html import Html, document, element, table

LONGEST = 360  # characters of a span that are shown; the middle of a longer one is left out


def write_page(
    path: Path,
    figures: dict[str, Any],
    examples: Sequence[tuple[str, list[Span]]],
    tokenizer: Tokenizer,
    model: ModelConfig,
):
    """Writes one HTML file that stands alone. Raises ReportError without matplotlib."""
    body = (
        _summary(figures),
        _mix(figures),
        _lengths(figures),
        _segments(figures),
        _packing(figures),
        _refused(figures),
    )
    shown = element(
        "section",
        element("h2", "Examples"),
        _legend(),
        *(_example(*one, tokenizer, model) for one in examples),
    )
    path.write_text(document(f"Data {figures['recipe']}", *body, shown), encoding="utf-8")


def streams_of(figures: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Figures of every stream by its name, in the order of the recipe."""
    found = {
        f"{kind}/{source}": stream
        for source, told in figures["sources"].items()
        for kind, stream in told["streams"].items()
    }
    return {name: found[name] for name in figures["packing"]["trained_shares"]}


def _summary(figures: dict[str, Any]) -> Html:
    packing, sources = figures["packing"], figures["sources"].values()
    cards = [
        (f"{sum(source['examples']['train'] for source in sources):,}", "examples to train on"),
        (f"{sum(source['examples']['held'] for source in sources):,}", "held out"),
        (big_count(sum(source["tokens"]["train"] for source in sources)), "tokens to train on"),
        (
            f"{packing['positions_fill']:.1%}",
            f"of {packing['positions']:,} decoder positions in use",
        ),
        (f"{packing['windows_fill']:.1%}", f"of {packing['windows']} encoder windows in use"),
    ]
    boxes = [
        element("div", element("b", figure), element("span", label), class_="card")
        for figure, label in cards
    ]
    ratios = ", ".join(map(str, figures["ratios"]))
    words = f"Read at {ratios} tokens a latent, in windows of {figures['window']:,} tokens."
    return element(
        "header",
        element("h1", f"Data of recipe {figures['recipe']}"),
        element("section", words, element("div", *boxes, class_="cards")),
    )


def _mix(figures: dict[str, Any]) -> Html:
    shares, rows = figures["packing"]["trained_shares"], []
    streams = streams_of(figures)
    for name, stream in streams.items():
        rows.append(
            (
                name,
                f"{stream['documents']:,}",
                big_count(stream["tokens_before"]),
                big_count(stream["tokens_after"]),
                f"{stream['tokens_before'] / max(1, stream['tokens_after']):.1f}",
                big_count(stream["trainable_tokens"]),
                f"{stream['too_long']:,}",
                f"{stream['too_short']:,}",
                f"{stream['recipe_share']:.1%}",
                f"{shares[name]:.1%}",
            )
        )
    headings = (
        "stream",
        "examples",
        "tokens",
        "decoder positions",
        "times fewer",
        "trained",
        "too long",
        "too short",
        "recipe",
        "in packed rows",
    )
    wanted = {name: stream["recipe_share"] for name, stream in streams.items()}
    picture = _figure(
        "Share of trained tokens", plots.plot_shares({"recipe": wanted, "in packed rows": shares})
    )
    note = element(
        "p",
        "Every stream once. Examples too long for a row, and documents too short for two segments, are counted and left out.",
        class_="note",
    )
    return element(
        "section", element("h2", "What is trained on"), table(headings, rows), note, picture
    )


def _lengths(figures: dict[str, Any]) -> Html:
    lengths = {
        name: {int(n): count for n, count in source["lengths"].items()}
        for name, source in figures["sources"].items()
    }
    pictures = [
        _figure(name, plots.plot_lengths(counts)) for name, counts in lengths.items() if counts
    ]
    return element(
        "section",
        element("h2", "Lengths, in tokens"),
        element("div", *pictures, class_="pictures small"),
    )


def _segments(figures: dict[str, Any]) -> Html:
    rows = [
        (
            f"{name}, {bucket}",
            f"{told['documents']:,}",
            big_count(told["tokens_before"]),
            big_count(told["tokens_after"]),
            big_count(told["trainable_tokens"]),
            ", ".join(f"{count}: {n:,}" for count, n in told["pairs"].items()),
            _spread(told["first_wrapped_share"]),
            _spread(told["last_plain_share"]),
            "" if told["shortest_segment"] is None else told["shortest_segment"],
        )
        for name, stream in streams_of(figures).items()
        for bucket, told in stream["buckets"].items()
    ]
    headings = (
        "stream and length",
        "examples",
        "tokens",
        "positions",
        "trained",
        "contexts: examples",
        "first context",
        "last trained span",
        "shortest",
    )
    note = "Of several: what the first context holds of all compressed tokens, the last trained span of all trained ones."
    return element(
        "section",
        element("h2", "How examples are cut"),
        table(headings, rows),
        element("p", note, class_="note"),
    )


def _packing(figures: dict[str, Any]) -> Html:
    packing = figures["packing"]
    rows = [
        (
            windows,
            f"{told['positions_fill']:.1%}",
            f"{told['windows_fill']:.1%}",
            f"{told['examples'] / packing['rows']:.1f}",
        )
        for windows, told in packing["tried_windows"].items()
    ]
    words = (
        f"{packing['rows']} rows, packed as in training. The data ask for {packing['windows_in_demand']:.2f} windows a row; "
        f"suggested: --set {packing['suggestion']}."
    )
    fills = np.array(packing["fills"])
    picture = _figure(
        "How full rows are",
        plots.plot_fills({"decoder positions": fills[:, 0], "encoder windows": fills[:, 1]}),
    )
    headings = ("windows a row", "positions in use", "windows in use", "examples a row")
    return element(
        "section", element("h2", "Packing"), element("p", words), table(headings, rows), picture
    )


def _refused(figures: dict[str, Any]) -> Html:
    rows = [
        (
            name,
            f"{source['rows']:,}",
            ", ".join(f"{count:,} {reason}" for reason, count in source["rejected"].items())
            or "none",
            f"{source['spelled_control']:,}",
        )
        for name, source in figures["sources"].items()
    ]
    note = "Every refused row stands in rejections.jsonl. Spelled control tokens are trained on as plain text."
    headings = ("source", "rows", "refused", "examples that spell a control token")
    return element(
        "section",
        element("h2", "What was refused"),
        table(headings, rows),
        element("p", note, class_="note"),
    )


def _legend() -> Html:
    return element(
        "p",
        element("span", "compressed", class_="context"),
        " ",
        element("span", "trained on", class_="trained"),
        " read only",
        class_="note",
    )


def _example(name: str, record: Sequence[Span], tokenizer: Tokenizer, model: ModelConfig) -> Html:
    pieces = []
    for span in record:
        tokens = np.asarray(span.tokens) if isinstance(span, (Plain, Context)) else np.zeros(0, int)
        text = _shorten(tokenizer.decode(tokens))
        if isinstance(span, Context):
            latents = count_latents(len(tokens), model, span.ratio)
            pieces.append(
                element(
                    "span", text, class_="context", title=f"{len(tokens)} tokens, {latents} latents"
                )
            )
        else:
            pieces.append(
                element(
                    "span",
                    text,
                    class_="trained" if isinstance(span, Plain) and span.trained else "plain",
                )
            )
    return element(
        "div",
        element("div", name, class_="label"),
        element("div", *pieces, class_="quote"),
        class_="sample",
    )


def _shorten(text: str) -> str:
    half = LONGEST // 2
    return (
        text
        if len(text) <= LONGEST
        else f"{text[:half]} […{len(text) - 2 * half:,} characters…] {text[-half:]}"
    )


def _spread(spread: dict[str, float] | None) -> str:
    return (
        ""
        if spread is None
        else f"{spread['min']:.0%} to {spread['max']:.0%}, median {spread['median']:.0%}"
    )


def _figure(title: str, picture: Any) -> Html:
    return element(
        "figure",
        element("figcaption", title),
        element("img", src=plots.as_data_uri(picture), alt=title),
    )
