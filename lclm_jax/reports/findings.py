"""What the figures of a run say in words: the training log by stage, and sentences computed from an evaluation."""

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lclm_jax.errors import UserError

log = logging.getLogger(__name__)
Figures = Mapping[str, Any]
PARTS = ("encoder", "adapter", "decoder")


class ReportError(UserError):
    """A run that cannot be reported on, or a tool for it that is not installed."""


@dataclass(frozen=True)
class Stage:
    """One stage as the log tells it; step s of it is step `start + s` of the run."""

    name: str
    start: int
    steps: int
    lines: tuple[Figures, ...]

    @property
    def last(self) -> int:
        return self.lines[-1]["step"]


@dataclass(frozen=True)
class Comparison:
    """One test taken in the three views, each a share with its 95 % interval."""

    name: str
    latents: Figures
    text: Figures
    nothing: Figures

    @property
    def clear(self) -> bool:
        """The latents' interval lies wholly above that of nothing."""
        return self.latents["low"] > self.nothing["high"]

    @property
    def no_better(self) -> bool:
        return self.latents["value"] <= self.nothing["value"]

    @property
    def readable(self) -> bool:
        """With the full text in view the decoder does better than with nothing; else there is no gap to close."""
        return self.text["value"] > self.nothing["value"]


def read_log(path: Path) -> list[Stage]:
    """The log's lines by stage, in the order of the run; the last line written for a stage's step is the one that counts."""
    return by_stage(read_lines(path))


def read_lines(path: Path) -> list[Figures]:
    """The lines of a file of JSON that say a stage and a step, as they were written; one that was cut short is left out."""
    result = []
    with (
        path.open(encoding="utf-8", errors="replace") if path.exists() else nullcontext(()) as texts
    ):
        for number, text in enumerate(texts, start=1):
            try:
                line = json.loads(text)
                place = line["stage"], line["step"]
            except (json.JSONDecodeError, TypeError, KeyError):
                place = ()
            if [type(part) for part in place] == [str, int]:
                result.append(line)
            elif text.strip():
                log.warning(
                    "%s:%d is not a whole line with a stage and a step; left out", path, number
                )
    return result


def by_stage(lines: Iterable[Figures]) -> list[Stage]:
    """Lines of the log by stage, in the order of the run.

    A run that went back to an earlier step takes it and all that follow anew, so what was written of them before does not count.
    """
    stages: dict[str, list[Figures]] = {}
    for line in lines:
        kept = stages.setdefault(line["stage"], [])
        while next(reversed(stages)) != line["stage"]:
            stages.popitem()
        while kept and kept[-1]["step"] >= line["step"]:
            kept.pop()
        kept.append(line)
    result: list[Stage] = []
    for name, kept in stages.items():
        start = result[-1].start + result[-1].steps if result else 0
        result.append(Stage(name, start, kept[-1].get("steps", kept[-1]["step"]), tuple(kept)))
    return result


def training_seconds(stages: Sequence[Stage], data: Figures) -> float:
    """Seconds inside the training loop, from the pace of every line."""
    seconds = 0.0
    for stage in stages:
        before = 0
        for line in stage.lines:
            each, pace = finite(line.get("step_seconds")), finite(line.get("positions_per_second"))
            if each is None and pace:
                each = data["batch_rows"] * data["row_positions"] / pace
            seconds += (line["step"] - before) * (each or 0.0)
            before = line["step"]
    return seconds


def trained_tokens(stages: Sequence[Stage]) -> float:
    return sum(
        finite(line.get("trained_tokens")) or 0.0 for stage in stages for line in stage.lines
    )


def compare(evaluation: Figures) -> list[Comparison]:
    """Every test of an evaluation that gives a share: passages by source and length, then the questions, if any were asked."""
    result = [
        Comparison(
            passages(entry), *(entry[view]["accuracy"] for view in ("latents", "text", "nothing"))
        )
        for entry in evaluation["reconstruction"]
    ]
    return result + compare_questions(evaluation)


def compare_questions(evaluation: Figures) -> list[Comparison]:
    questions = evaluation["questions"]
    if questions is None:
        return []
    return [
        Comparison(
            "questions answered exactly",
            questions["latents"],
            questions["text"],
            questions["nothing"],
        )
    ]


def passages(entry: Figures) -> str:
    return f"{entry['source']} passages of {span(entry['lengths'])} tokens reconstructed"


def span(lengths: Sequence[int]) -> str:
    low, high = lengths
    return f"{low}" if low == high else f"{low} to {high}"


def gap_closed(latents: float, text: float, nothing: float) -> float | None:
    """Share of the way from nothing to the full text that the latents go; None where the full text does not help.

    >>> gap_closed(latents=0.5, text=0.8, nothing=0.2)
    0.5
    The order is that of a share; of losses, where less is better, pass the negatives.
    """
    return (latents - nothing) / (text - nothing) if text > nothing else None


def summarise(evaluation: Figures) -> tuple[str, list[str]]:
    """The verdict in one sentence, and what it rests on."""
    comparisons = [item for item in compare(evaluation) if item.latents["count"]]
    clear = [item for item in comparisons if item.clear]
    total = len(comparisons)
    if not total:
        verdict = "Nothing was tested."
    elif len(clear) == total:
        verdict = f"Compression works here: in all {total} tests the latents clearly beat no context at all."
    elif clear:
        verdict = f"Compression works in part: in {len(clear)} of {total} tests the latents clearly beat no context at all."
    else:
        verdict = f"Compression does not work yet: in none of {total} tests do the latents clearly beat no context at all."
    facts = [
        f"Every {evaluation['ratio']} tokens of a context become one latent, which the decoder reads in place of the text."
    ]
    facts += [
        judge(item)
        for item in (*pool(evaluation["reconstruction"]), *compare_questions(evaluation))
    ]
    for name, entries in list(evaluation["cost"].items())[:1]:
        facts.append(f"Reading with {name}: {describe_cost(entries[-1])}")
    return verdict, facts


def pool(entries: Sequence[Figures]) -> list[Comparison]:
    """Per source, the accuracy over the passages of all lengths together; its interval is their mean, wider than need be."""
    result = []
    for source in dict.fromkeys(entry["source"] for entry in entries):
        views = {}
        for view in ("latents", "text", "nothing"):
            shares = [
                entry[view]["accuracy"]
                for entry in entries
                if entry["source"] == source and entry[view]["accuracy"]["count"]
            ]
            count = sum(share["count"] for share in shares)
            means = {
                key: sum(share[key] * share["count"] for share in shares) / max(count, 1)
                for key in ("value", "low", "high")
            }
            views[view] = means | {"count": count}
        result.append(Comparison(f"tokens of {source} passages reconstructed", **views))
    return result


def describe_cost(entry: Figures) -> str:
    plain, compressed = entry["plain"], entry["compressed"]
    flops = total_flops(compressed) / total_flops(plain)
    work = f"{percent(flops)} of the FLOPs" + (
        ", more work than without compression" if flops > 1 else ""
    )
    return (
        f"a context of {entry['tokens']:,} tokens takes {compressed['positions']:,} decoder positions in place of "
        f"{plain['positions']:,}, a cache {plain['cache_bytes'] / compressed['cache_bytes']:.1f} times smaller and {work}."
    )


def judge(item: Comparison) -> str:
    """One test in plain words, the bad news included."""
    if not item.latents["count"]:
        return f"{upper_first(item.name)}: nothing was tested."
    latents, text, nothing = (
        percent(view["value"]) for view in (item.latents, item.text, item.nothing)
    )
    figures = f"{upper_first(item.name)}: {latents} from latents, {text} from the full text, {nothing} from nothing."
    if item.clear and item.latents["value"] > item.text["value"]:
        return f"{figures} The latents clearly beat nothing; this decoder reads them better than it reads the text itself."
    if not item.readable:
        return f"{figures} Even the full text does not help this decoder, so the test says nothing about compression."
    if item.no_better:
        return f"{figures} The latents are no better than nothing."
    if not item.clear:
        return f"{figures} The intervals of latents and nothing overlap, so the difference may be chance."
    share = gap_closed(item.latents["value"], item.text["value"], item.nothing["value"])
    assert share is not None
    return f"{figures} The latents clearly beat nothing and close {percent(share)} of the gap to the full text."


def judge_continuation(entry: Figures) -> str:
    latents, text, nothing = (entry[view] for view in ("latents", "text", "nothing"))
    opening = (
        f"Continuing {entry['source']}: loss {latents:.3f} after latents, "
        f"{text:.3f} after the text, {nothing:.3f} after nothing."
    )
    share = gap_closed(-latents, -text, -nothing)
    if share is None:
        return f"{opening} Even the full text does not lower the loss, so there is no gap to close."
    if share <= 0:
        return f"{opening} The latents do not help."
    if share > 1:
        return f"{opening} The latents help more than the text itself."
    return f"{opening} The latents close {percent(share)} of the gap."


def judge_lengths(entries: Sequence[Figures]) -> list[str]:
    """How reconstruction changes from the shortest to the longest passages of each source."""
    result = []
    for source in dict.fromkeys(entry["source"] for entry in entries):
        some = sorted(
            (entry for entry in entries if entry["source"] == source),
            key=lambda entry: entry["lengths"][0],
        )
        if len(some) < 2:
            continue
        first, last = some[0], some[-1]
        short, long = first["latents"]["accuracy"], last["latents"]["accuracy"]
        change = (
            "falls"
            if long["high"] < short["low"]
            else "rises"
            if long["low"] > short["high"]
            else "hardly changes"
        )
        result.append(
            f"Longer passages of {source}: accuracy from latents {change}, from {percent(short['value'])} at "
            f"{span(first['lengths'])} tokens to {percent(long['value'])} at {span(last['lengths'])}."
        )
    return result


def judge_ratios(entries: Sequence[Figures]) -> list[str]:
    """How reconstruction changes with the ratio, of a model that has several, for each kind of passages."""
    result = []
    for entry in entries:
        if ratios := entry.get("ratios"):
            told = ", ".join(
                f"{percent(figures['accuracy']['value'])} at ratio {ratio}"
                for ratio, figures in ratios.items()
            )
            nothing = percent(entry["nothing"]["accuracy"]["value"])
            result.append(
                f"{upper_first(passages(entry))} by ratio: {told}; {nothing} from nothing."
            )
    return result


def total_flops(cost: Mapping[str, float]) -> float:
    return sum(cost[f"{part}_flops"] for part in PARTS)


def say_gap(losses: Mapping[str, float]) -> str:
    """The share of the gap closed by losses of the three views, in a cell of a table."""
    if any(finite(losses.get(view)) is None for view in ("latents", "text", "nothing")):
        return "–"
    share = gap_closed(-losses["latents"], -losses["text"], -losses["nothing"])
    return "no gap" if share is None else "all of it" if share > 1 else percent(share)


def finite(value: Any) -> float | None:
    """The number, or None where there is none or none that is finite."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def figure(value: Any, form: str = ",.3g") -> str:
    """A number in a few characters, a dash where there is none.

    >>> figure(0.01234), figure(12345), figure(float("nan"))
    ('0.0123', '12,345', '–')
    """
    number = finite(value)
    if number is None:
        return "–"
    if form == ",.3g" and 1000 <= abs(number) < 1e7:
        return f"{number:,.0f}"
    return format(number, form).replace("%", " %")


def percent(share: float | None) -> str:
    number = finite(share)
    return "–" if number is None else f"{100 * number:.1f} %"


def interval(share: Figures) -> str:
    """A share with its interval, in a cell of a table."""
    if not share["count"]:
        return "–"
    return f"{percent(share['value'])} ({100 * share['low']:.1f}–{100 * share['high']:.1f})"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min {rest} s"
        if minutes
        else f"{rest} s"
    )


def byte_count(count: float) -> str:
    power = min(int(math.log(max(count, 1), 1000)), 4)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def big_count(count: float) -> str:
    return f"{count / 1e6:.2f} million" if count >= 1e6 else f"{count:,.0f}"


def upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]
