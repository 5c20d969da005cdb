"""The history of a run, from its events: sessions, skipped steps, damaged checkpoints."""

import json
from bisect import bisect_left
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from lclm_jax.reports.formats import UNKNOWN, duration, number, plural, upper_first
from lclm_jax.reports.records import Line, Run, finite

BEFORE_RESUMED = ("damaged", "changed")  # events that a session may write before "resumed"
MAX_RECORDS_NAMED = 3  # of a skipped step
EVENT_NAMES = {
    "skipped": "step skipped",
    "damaged": "checkpoint damaged",
    "changed": "settings changed",
}


def sessions(events: Sequence[Line], times: Sequence[float]) -> dict[int, float | None]:
    """Return the events that began a session: their index, and the seconds since any line before.

    `times` are those of the other lines, ascending. The seconds are None where they are not known.
    A session may write "started" first and "resumed" when it has found its checkpoint; only events
    and lines between the two make them two sessions.
    """
    pauses: dict[int, float | None] = {}
    newest: float | None = None  # time of any event so far
    started: float | None = None  # time of a "started" that nothing has followed
    for index, event in enumerate(events):
        if event.event in BEFORE_RESUMED:
            continue
        now = event.finite("time")
        resumed_alone = event.event == "resumed" and (
            started is None or _any_between(times, started, now)
        )
        if event.event == "started" or resumed_alone:
            pauses[index] = _pause(now, newest, times)
        started = now if event.event == "started" else None
        if now is not None:
            newest = now if newest is None else max(newest, now)
    return pauses


def _pause(now: float | None, newest: float | None, times: Sequence[float]) -> float | None:
    if now is None:
        return None
    before = list(times[: bisect_left(times, now)][-1:])
    if newest is not None:
        before.append(newest)
    return max(0.0, now - max(before)) if before else None


def _any_between(times: Sequence[float], begin: float, end: float | None) -> bool:
    return end is not None and bisect_left(times, end) > bisect_left(times, begin)


def skipped_steps(run: Run) -> list[int]:
    """Return the steps of the run that were skipped, each once."""
    steps = {run.run_step(event) for event in run.events if event.event == "skipped"}
    return sorted(step for step in steps if step is not None)


def summarise(run: Run) -> str:
    """Return what happened in a sentence or two, or nothing if nothing was recorded."""
    pauses = sessions(run.events, run.times)
    facts = [f"it was started {_times(len(pauses))}"] if pauses else []
    logged = sum(int(stage.lines[-1].finite("skipped") or 0) for stage in run.stages)
    skipped = max(logged, len(skipped_steps(run)))
    if skipped:
        steps = plural(skipped, "step was", "steps were")
        facts.append(f"{steps} skipped because loss or gradients were not finite")
    elif pauses:
        facts.append("no step was skipped")
    damaged = {
        str(event.details.get("checkpoint")) for event in run.events if event.event == "damaged"
    }
    if damaged:
        checkpoints = plural(len(damaged), "damaged checkpoint was", "damaged checkpoints were")
        facts.append(f"{checkpoints} passed over")
    changes = sum(event.event == "changed" for event in run.events)
    if changes:
        facts.append(f"settings were changed {_times(changes)}")
    sentences = [f"{upper_first('; '.join(facts))}."] if facts else []
    known = [seconds for seconds in pauses.values() if seconds is not None]
    if known:
        sentences.append(
            "Between sessions, from the last line written to the next start, "
            f"{duration(sum(known))} passed."
        )
    if run.events and run.events[-1].event == "stopped":
        sentences.append(_describe_stop(run, run.events[-1]))
    return " ".join(sentences)


def _describe_stop(run: Run, event: Line) -> str:
    step, reason = run.run_step(event), event.details.get("reason")
    place = "" if step is None else f" at step {step:,}"
    return f"It stopped{place}{f': {reason}' if reason else ''}."


def timeline(run: Run) -> list[tuple[str, str, str, str, str]]:
    """Return a row for every event: time, step of the run, stage, name and details."""
    pauses = sessions(run.events, run.times)
    rows = []
    for index, event in enumerate(run.events):
        step, pause = run.run_step(event), pauses.get(index)
        assert event.event  # as all of `Run.events` have
        details = [_describe_details(event)]
        if pause is not None:
            details.append(f"{duration(pause)} after the last line before")
        rows.append(
            (
                _format_time(event.finite("time")),
                UNKNOWN if step is None else f"{step:,}",
                event.stage,
                EVENT_NAMES.get(event.event, event.event),
                "; ".join(filter(None, details)),
            )
        )
    return rows


def _format_time(seconds: float | None) -> str:
    if seconds is None:
        return UNKNOWN
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _describe_details(event: Line) -> str:
    match event.event, event.details:
        case "resumed", {"from": int(step)}:
            return f"from step {step:,}"
        case "stopped", {"reason": str(reason)}:
            return reason
        case "skipped", details:
            return _describe_skip(details)
        case "damaged", {"checkpoint": checkpoint, "reason": reason}:
            return f"{checkpoint}: {reason}"
        case "changed", {"settings": dict(settings)}:
            return ", ".join(f"{key} {_describe_change(pair)}" for key, pair in settings.items())
        case "profiled", {"directory": directory}:
            return f"into {directory}"
        case "compiled", {"seconds": seconds}:
            return f"in {number(seconds)} s"
    return json.dumps(event.details) if event.details else ""


def _describe_skip(details: dict[str, Any]) -> str:
    parts = []
    for key in ("loss", "gradient_norm"):
        if key in details:
            known = finite(details[key]) is not None
            value = number(details[key]) if known else "not finite"
            parts.append(f"{key.replace('_', ' ')} {value}")
    records = details.get("records")
    if isinstance(records, list) and records:
        names = ", ".join(map(str, records[:MAX_RECORDS_NAMED]))
        rest = len(records) - MAX_RECORDS_NAMED
        more = f" and {rest:,} more" if rest > 0 else ""
        parts.append(f"{plural(len(records), 'record', 'records')}: {names}{more}")
    return "; ".join(parts)


def _describe_change(pair: Any) -> str:
    match pair:
        case [old, new]:
            return f"{_plain(old)} → {_plain(new)}"
    return json.dumps(pair)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"
