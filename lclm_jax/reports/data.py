"""The page of prepared data: its survey as tables and pictures, and examples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lclm_jax.config import ModelConfig
from lclm_jax.data.records import Context, Plain, Span, count_latents
from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.reports import plots
from lclm_jax.reports.pages import Picture, picture, render

MAX_SPAN_CHARACTERS = 360  # the middle of a longer span is left out


def write_page(
    path: Path,
    survey: Mapping[str, Any],
    examples: Sequence[tuple[str, Sequence[Span]]],
    tokenizer: Tokenizer,
    model: ModelConfig,
):
    """Write a page about a survey of `data.loading.survey` and (stream, record) examples.

    Raises ReportError without matplotlib.
    """
    streams = streams_by_name(survey)
    shown = [
        (name, [_describe_span(span, tokenizer, model) for span in record])
        for name, record in examples
    ]
    pictures = {
        "shares": _plot_shares(survey, streams),
        "lengths": _plot_lengths(survey),
        "fills": _plot_fills(survey),
    }
    page = render("data.html.j2", survey=survey, streams=streams, examples=shown, **pictures)
    path.write_text(page, encoding="utf-8")


def streams_by_name(survey: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the figures of every stream, in the order of the recipe."""
    streams = {
        f"{kind}/{source}": stream
        for source, figures in survey["sources"].items()
        for kind, stream in figures["streams"].items()
    }
    return {name: streams[name] for name in survey["packing"]["trained_shares"]}


def _plot_shares(survey: Mapping[str, Any], streams: Mapping[str, Mapping[str, Any]]) -> Picture:
    planned = {name: stream["recipe_share"] for name, stream in streams.items()}
    shares = {"recipe": planned, "in packed rows": survey["packing"]["trained_shares"]}
    title = "Share of trained tokens"
    return picture(plots.plot_shares(shares), title, title)


def _plot_lengths(survey: Mapping[str, Any]) -> list[Picture]:
    pictures = []
    for name, source in survey["sources"].items():
        counts = {int(length): count for length, count in source["lengths"].items()}
        if counts:
            pictures.append(picture(plots.plot_lengths(counts), name, name))
    return pictures


def _plot_fills(survey: Mapping[str, Any]) -> Picture:
    positions, windows = zip(*survey["packing"]["fills"], strict=True)
    fills = {"decoder positions": positions, "encoder windows": windows}
    title = "How full rows are"
    return picture(plots.plot_fills(fills), title, title)


def _describe_span(span: Span, tokenizer: Tokenizer, model: ModelConfig) -> dict[str, str]:
    """Return the style, the text and the tooltip of a span."""
    tokens = span.tokens if isinstance(span, Plain | Context) else ()
    text = _shorten(tokenizer.decode(list(tokens)))
    if isinstance(span, Context):
        latents = count_latents(len(tokens), model, span.ratio)
        return {
            "style": "context",
            "text": text,
            "hint": f"{len(tokens)} tokens, {latents} latents",
        }
    style = "trained" if isinstance(span, Plain) and span.trained else "plain"
    return {"style": style, "text": text, "hint": ""}


def _shorten(text: str) -> str:
    if len(text) <= MAX_SPAN_CHARACTERS:
        return text
    half = MAX_SPAN_CHARACTERS // 2
    return f"{text[:half]} […{len(text) - 2 * half:,} characters…] {text[-half:]}"
