"""The history of a run as its directory tells it: steps, validations and everything else that happened, in order and in words."""

import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from lclm_jax.files.run_layout import EVENTS, LOG, VALIDATION
from lclm_jax.reports import findings
from lclm_jax.reports.findings import Figures, Stage, duration, figure, finite

OPENING = ("damaged", "changed")  # what a session may write before it says where it resumed
NAMED = 3  # records of a skipped step that are named


@dataclass(frozen=True)
class Validation:
    """Held-out documents read in the three views at a step of the run: {stream: {view: {"loss", "accuracy", "tokens"}}}."""

    stage: str
    step: int
    streams: Mapping[str, Mapping[str, Figures]]


@dataclass(frozen=True)
class History:
    """What the lines in a run's directory say; steps are of the run unless said otherwise."""

    stages: Sequence[Stage]
    validations: Sequence[Validation]
    events: Sequence[Figures]
    times: Sequence[float]  # when lines of the log and of validations were written, in order
    starts: Mapping[str, int]  # step of the run that each stage begins after

    @property
    def done(self) -> int:
        """Steps that the log has seen."""
        return self.stages[-1].start + self.stages[-1].last if self.stages else 0

    @property
    def end(self) -> int:
        """The last step of which anything is known."""
        return max([1, self.done, *(validation.step for validation in self.validations)])

    @property
    def spans(self) -> list[tuple[str, int, int]]:
        """Every stage that was reached, with the steps it begins after and ends with."""
        names, begins = list(self.starts), list(self.starts.values())
        spans = zip(names, begins, [*begins[1:], self.end], strict=True)
        return [
            (name, begin, min(stop, self.end)) for name, begin, stop in spans if begin < self.end
        ]

    @cached_property
    def streams(self) -> list[str]:
        """Names of all streams, those trained on first."""
        trained = [
            name
            for stage in self.stages
            for line in stage.lines
            for name in line.get("streams", ())
        ]
        return list(
            dict.fromkeys(
                [
                    *trained,
                    *(name for validation in self.validations for name in validation.streams),
                ]
            )
        )

    def place(self, line: Figures) -> int | None:
        """The step of the run that a line is about; None where its stage is none of this run."""
        start = self.starts.get(line["stage"])
        return None if start is None else start + line["step"]


def read_history(directory: Path, config: Figures) -> History:
    lines, validations = (findings.read_lines(directory / name) for name in (LOG, VALIDATION))
    stages = findings.by_stage(lines)
    steps = {stage["name"]: stage["steps"] for stage in config["stages"]} | {
        stage.name: stage.steps for stage in stages
    }
    ends = list(steps.values())
    starts = {name: sum(ends[:number]) for number, name in enumerate(steps)}
    return History(
        [replace(stage, start=starts[stage.name]) for stage in stages],
        _last_validations(validations, starts),
        [
            line
            for line in findings.read_lines(directory / EVENTS)
            if isinstance(line.get("event"), str)
        ],
        sorted(
            time
            for line in (*lines, *validations)
            if (time := finite(line.get("time"))) is not None
        ),
        starts,
    )


def _last_validations(lines: Iterable[Figures], starts: Mapping[str, int]) -> list[Validation]:
    """In the order of the run; what was written of a step before the run went back to it or beyond does not count."""
    result: list[Validation] = []
    for line in lines:
        if line["stage"] not in starts:
            continue
        this = Validation(
            line["stage"], starts[line["stage"]] + line["step"], line.get("streams") or {}
        )
        while result and (
            result[-1].step > this.step
            or (result[-1].stage, result[-1].step) == (this.stage, this.step)
        ):
            result.pop()
        result.append(this)
    return result


def views_of(validation: Validation, stream: str, quantity: str) -> dict[str, float]:
    """The quantity, "loss" or "accuracy", of a stream in each view that has one."""
    views = validation.streams.get(stream, {})
    values = {
        view: finite((views.get(view) or {}).get(quantity))
        for view in ("latents", "text", "nothing")
    }
    return {view: value for view, value in values.items() if value is not None}


def gap_of(validation: Validation, stream: str) -> float | None:
    """The share of the gap that latents close on a stream; None where there is no gap or a view is missing."""
    losses = views_of(validation, stream, "loss")
    if len(losses) < 3:
        return None
    return findings.gap_closed(-losses["latents"], -losses["text"], -losses["nothing"])


def sessions(events: Sequence[Figures], times: Sequence[float]) -> dict[int, float | None]:
    """For each event that began a session, by its index, seconds since the last line before it; None where none is known.

    A session that goes on from a checkpoint may say first that it started and then where it resumed: that is one.
    """
    result: dict[int, float | None] = {}
    seen: float | None = None  # the last time of an event that a session under way has written
    fresh: float | None = (
        None  # when a session began that has done nothing yet; it may still say where it resumed
    )
    for i, event in enumerate(events):
        kind, now = event["event"], finite(event.get("time"))
        if kind in OPENING:
            continue
        if kind == "started" or (
            kind == "resumed" and (fresh is None or _any_between(times, fresh, now))
        ):
            before = (
                []
                if now is None
                else [*times[: bisect_left(times, now)][-1:], *([] if seen is None else [seen])]
            )
            result[i] = max(0.0, now - max(before)) if now is not None and before else None
        fresh = now if kind == "started" else None
        seen = now if seen is None or (now is not None and now > seen) else seen
    return result


def _any_between(times: Sequence[float], begin: float, end: float | None) -> bool:
    return end is not None and bisect_left(times, end) > bisect_left(times, begin)


def skipped_steps(history: History) -> list[int]:
    """Steps of the run that events say were skipped, each once."""
    places = {history.place(event) for event in history.events if event["event"] == "skipped"}
    return sorted(place for place in places if place is not None)


def summarise(history: History) -> str:
    """What happened, in a sentence or two; empty where nothing was written down."""
    parts = []
    begun = sessions(history.events, history.times)
    if begun:
        parts.append(f"it was started {_times(len(begun))}")
    counted = sum(int(finite(stage.lines[-1].get("skipped")) or 0) for stage in history.stages)
    skipped = max(counted, len(skipped_steps(history)))
    if skipped:
        parts.append(
            f"{_count(skipped, 'step was', 'steps were')} skipped because loss or gradients were not finite"
        )
    elif begun:
        parts.append("no step was skipped")
    damaged = {
        str(event.get("checkpoint")) for event in history.events if event["event"] == "damaged"
    }
    if damaged:
        parts.append(
            f"{_count(len(damaged), 'damaged checkpoint was', 'damaged checkpoints were')} passed over"
        )
    changes = sum(event["event"] == "changed" for event in history.events)
    if changes:
        parts.append(f"settings were changed {_times(changes)}")
    words = [findings.upper_first("; ".join(parts)) + "."] if parts else []
    gaps = [gap for gap in begun.values() if gap is not None]
    if gaps:
        words.append(
            f"Between sessions, from the last line written to the next start, {duration(sum(gaps))} passed."
        )
    if history.events and history.events[-1]["event"] == "stopped":
        place, reason = history.place(history.events[-1]), history.events[-1].get("reason")
        words.append(
            f"It stopped{'' if place is None else f' at step {place:,}'}{f': {reason}' if reason else ''}."
        )
    return " ".join(words)


def timeline(history: History) -> list[list[str]]:
    """Every event as a row: when, step of the run, stage, what and the particulars."""
    begun = sessions(history.events, history.times)
    rows = []
    for i, event in enumerate(history.events):
        place, seconds = history.place(event), finite(event.get("time"))
        when = (
            "–"
            if seconds is None
            else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
        )
        gap = begun.get(i)
        after = [] if gap is None else [f"{duration(gap)} after the last line before"]
        words = "; ".join(part for part in (_particulars(event), *after) if part)
        rows.append(
            [
                when,
                "–" if place is None else f"{place:,}",
                event["stage"],
                _name(event["event"]),
                words,
            ]
        )
    return rows


def _name(event: str) -> str:
    names = {
        "skipped": "step skipped",
        "damaged": "checkpoint damaged",
        "changed": "settings changed",
    }
    return names.get(event, event)


def _particulars(event: Figures) -> str:
    """What an event says beside when and where it was."""
    rest = {
        key: value for key, value in event.items() if key not in ("time", "event", "stage", "step")
    }
    match event["event"], rest:
        case "resumed", {"from": int(step)}:
            return f"from step {step:,}"
        case "stopped", {"reason": str(reason)}:
            return reason
        case "skipped", _:
            return _skipped(rest)
        case "damaged", {"checkpoint": checkpoint, "reason": reason}:
            return f"{checkpoint}: {reason}"
        case "changed", {"settings": dict(settings)}:
            return ", ".join(f"{key} {_change(change)}" for key, change in settings.items())
        case "profiled", {"directory": directory}:
            return f"into {directory}"
        case "compiled", {"seconds": seconds}:
            return f"in {figure(seconds)} s"
    return json.dumps(rest) if rest else ""


def _skipped(rest: Figures) -> str:
    figures = [
        f"{key.replace('_', ' ')} {'not finite' if finite(rest[key]) is None else figure(rest[key])}"
        for key in ("loss", "gradient_norm")
        if key in rest
    ]
    records = rest.get("records")
    if isinstance(records, list) and records:
        more = f" and {len(records) - NAMED:,} more" if len(records) > NAMED else ""
        figures.append(
            f"{_count(len(records), 'record', 'records')}: {', '.join(map(str, records[:NAMED]))}{more}"
        )
    return "; ".join(figures)


def _change(change: Any) -> str:
    match change:
        case [old, new]:
            return f"{_plain(old)} → {_plain(new)}"
    return json.dumps(change)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _count(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"
