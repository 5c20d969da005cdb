"""The training of a run on its page: the log, held-out documents, and everything that happened."""

import math
import re

import pytest

from lclm_jax.reports import events, figures
from lclm_jax.reports.records import Line, group_by_stage, read_lines
from tests.support.runs import (
    EVENTS,
    FULL_LOG,
    SCRIPT,
    event,
    full_line,
    line,
    read,
    validation,
    write_lines,
)


def find(drawn: dict, opening: str):
    return next(figure.axes[0] for alt, figure in drawn.items() if alt.startswith(opening))


def test_numbers_beside_the_loss_are_drawn_and_described(full_run, drawn):
    page = read(full_run)
    for opening in (
        "Gradient norm over the steps of the run. At the end: encoder 0.5, adapter 0.25.",
        "Update norm over the steps of the run. At the end: encoder 0.02, adapter 0.02.",
        "Update / parameters over the steps of the run. At the end: encoder 0.002, adapter 0.002.",
        "Learning rate over the steps of the run. At the end: encoder 0.5, adapter 0.25.",
        "Tokens per latent over the steps of the run. At the end: 4.",
        "Budgets in use over the steps of the run. At the end: positions 97.0 %, windows 98.5 %.",
        "Positions per second over the steps of the run. At the end: 1,024.",
        "Use of the time over the steps of the run. "
        "At the end: waiting for data 0.4 %, of the chip&#39;s peak 41.3 %.",
    ):
        assert f'alt="{opening}' in page, opening
    norms = find(drawn, "Gradient norm")
    assert norms.get_yscale() == "log"
    steps = [
        list(curve.get_xdata()) for curve in norms.get_lines() if curve.get_label() == "encoder"
    ]
    assert steps == [[20, 40]] and [40 + 30] in [
        list(curve.get_xdata()) for curve in norms.get_lines()
    ]  # of the run, not the stage
    assert [7, 47] in [list(curve.get_xdata()) for curve in norms.get_lines()]  # skipped
    assert "1.80e+14" in page and "The peak of this device is not known" not in page


def test_an_unknown_peak_is_named(full_run, unpainted):
    write_lines(full_run / "log.jsonl", [logged | {"mfu": None} for logged in FULL_LOG])
    page = read(full_run)
    assert "At the end: waiting for data 0.4 %. In all" in page
    assert "of the chip&#39;s peak" not in page and "The peak of this device is not known" in page


def test_held_out_documents_are_drawn_in_three_views(full_run, drawn, unpainted):
    page = read(full_run)
    loss = (
        "Lines of the held-out loss of sft/tasks. "
        "First: 6.000 from latents, 4.000 from full text, 8.000 from nothing."
    )
    assert f"{loss} Last: 4.500 from latents" in page
    assert "Lines of the held-out accuracy of reconstruction/docs." in page
    assert "Lines of the held-out accuracy of sft/tasks" not in page
    latents = find(drawn, "Lines of the held-out loss of sft/tasks").get_lines()[0]
    assert list(latents.get_xdata()) == [20, 40, 70] and list(latents.get_ydata()) == [
        6.0,
        5.0,
        4.5,
    ]  # 5.5 was read again
    assert "At the end: reconstruction/docs 87.5 %, sft/tasks 87.5 %" in page  # (8 - 4.5) / (8 - 4)
    assert "stage all, step 70 of the run" in page and "<td>87.5 %</td>" in page


@pytest.mark.parametrize("view", ["text", "latents"])
def test_held_out_numbers_may_be_missing_or_not_finite(full_run, view):
    broken = validation("all", 60, math.nan)
    del broken["streams"]["sft/tasks"][view]
    write_lines(
        full_run / "validation.jsonl",
        [validation("adapter", 40, 9.0, text=8.5), broken, validation("of another run", 1, 1.0)],
    )
    page = read(full_run)
    assert "nan" not in re.sub(r'src="[^"]*"', "", page)
    assert (
        "The full text did not lower the loss of any stream" in page
        and "step 100 of the run" in page
    )


def test_events_are_summarised_and_listed(full_run, unpainted):
    page = read(full_run)
    summary = (
        "It was started 2 times; 2 steps were skipped because loss or gradients were not finite; "
        "1 damaged checkpoint was passed over; settings were changed once. "
        "Between sessions, from the last line written to the next start, 1 h 0 min passed."
    )
    assert page.count(summary) == 2  # in the summary and above the timeline
    assert (
        "loss not finite; gradient norm 2.5; 40 records: docs/0, docs/1, docs/2 and 37 more" in page
    )
    assert "loss 1.5; gradient norm not finite; 1 record: code/1" in page
    assert (
        "data.batch_rows 8 → 16" in page
        and "from step 20; 1 h 0 min after the last line before" in page
    )
    assert "1970-01-01 01:17:20" in page and SCRIPT not in page
    assert "All 7 events" not in page


def test_a_long_timeline_is_folded(full_run, unpainted):
    write_lines(full_run / "events.jsonl", EVENTS * 3)
    assert "<details><summary>All 21 events</summary>" in read(full_run)
    write_lines(
        full_run / "events.jsonl",
        EVENTS[:1] + [event("skipped", 1000.0 + n, n) for n in range(1, 5000)],
    )
    page = read(full_run)
    assert (
        "4,000 more" in page
        and page.count("step skipped") == 999
        and "4,999 steps were skipped" in page
    )


@pytest.mark.parametrize(
    ("pairs", "times", "expected"),
    [
        ([], [], []),
        ([("started", 10)], [], [None]),
        (
            [("started", 10), ("resumed", 50)],
            [20, 30],
            [None, 20],
        ),  # goes on without saying that it started
        ([("started", 10), ("started", 50), ("resumed", 51)], [30], [None, 20]),  # says both
        ([("started", 10), ("damaged", 49), ("resumed", 50)], [30], [None, 20]),
        (
            [
                ("started", 10),
                ("started", 50),
                ("damaged", 51),
                ("resumed", 52),
                ("stopped", 60),
                ("resumed", 65),
            ],
            [55],
            [None, 40, 5],
        ),
        ([("started", 10), ("started", None)], [20], [None, None]),
        ([("resumed", 50)], [30], [20]),  # events were not written before
        ([("started", 50), ("started", 40)], [], [None, 0]),  # a clock that was set back
    ],
)
def test_sessions_have_the_time_since_the_line_before(pairs, times, expected):
    lines = [Line("adapter", 0, event(kind, time)) for kind, time in pairs]
    assert list(events.sessions(lines, times).values()) == expected


def test_repeated_steps_count_once(directory, unpainted):
    again = [
        line("adapter", step, 40, loss) for step, loss in ((20, 6.0), (37, 5.5), (40, 5.0))
    ] + [line("all", 30, 60, 4.0)]
    write_lines(
        directory / "log.jsonl", again + [line("adapter", 30, 40, 5.2)]
    )  # a checkpoint was damaged: back to 20
    (adapter,) = group_by_stage(read_lines(directory / "log.jsonl"))
    assert [logged.step for logged in adapter.lines] == [20, 30]
    assert "in stage adapter, step 30 of 100" in read(directory)


def test_numbers_may_not_be_finite(full_run, drawn):
    bad = full_line(
        "all",
        60,
        60,
        4800.0,
        **{"gradient_norm/encoder": math.nan, "loss": math.nan, "positions_per_second": math.nan},
    )
    bad["streams"]["sft/tasks"]["loss"] = math.nan
    zero = {
        "rate/encoder": 0.0,
        "update_norm/encoder": 0.0,
        "latents": 0,
        "parameter_norm/encoder": 0.0,
    }
    write_lines(full_run / "log.jsonl", [*FULL_LOG, full_line("all", 50, 60, 4750.0, **zero), bad])
    page = read(full_run)
    assert "nan" not in re.sub(r'src="[^"]*"', "", page)
    assert "sft/tasks 5.00" in page  # the last that is finite
    write_lines(full_run / "log.jsonl", [bad])
    page = read(full_run)
    assert "NaN" not in page and "– (16.7 %)" in page


@pytest.mark.parametrize("kept", [("log.jsonl",), ("validation.jsonl",), ("events.jsonl",), ()])
def test_a_single_line_makes_a_page(full_run, kept):
    for name in ("log.jsonl", "validation.jsonl", "events.jsonl"):
        path = full_run / name
        if name in kept:
            path.write_text(
                path.read_text(encoding="utf-8").splitlines()[0] + '\n[1]\n{}\n{"stage": "ad',
                encoding="utf-8",
            )
        else:
            path.unlink()
    page = read(full_run)
    for name in ("log.jsonl", "validation.jsonl", "events.jsonl"):
        assert (f"There is no {name}" in page) == (name not in kept)
    assert ("It was started once; no step was skipped." in page) == (kept == ("events.jsonl",))


def test_many_lines_become_few_points():
    points = [(step, float(step), 1.0) for step in range(1, 100_001)]
    segment = figures.thin(points, 250)
    assert len(segment.steps) == 400 and segment.steps[-1] == 100_000
    assert segment.means[0] == pytest.approx(125.5) and (segment.lows[0], segment.highs[0]) == (
        1,
        250,
    )
    thinned = figures.thin([(1, 2.0, 3.0), (2, 6.0, 1.0), (3, math.nan, 1.0), (4, None, 1.0)], 2)
    assert (thinned.steps, thinned.means[0]) == ([2, 4], 3.0) and math.isnan(
        thinned.means[1]
    )  # by weight, and nothing finite


def test_a_long_run_is_drawn_in_few_points(full_run, drawn, monkeypatch, unpainted):
    monkeypatch.setattr(figures, "MAX_CURVE_POINTS", 10)
    lines = [
        full_line("adapter", step, 40, 1000.0 + step, fill=step / 100) for step in range(1, 41)
    ]
    write_lines(full_run / "log.jsonl", [*lines, full_line("all", 1, 60, 1050.0)])
    read(full_run)
    first, *_ = find(drawn, "Budgets in use").get_lines()
    assert list(first.get_xdata()) == [5, 10, 15, 20, 25, 30, 35, 40]
    assert first.get_ydata()[0] == pytest.approx(0.03)
