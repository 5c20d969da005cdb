"""The course of a run on its page: what the log says beside the loss, held-out documents, and everything that happened."""

import math
import re
from pathlib import Path

import pytest
from test_run_report import CONFIG, LOG, SCRIPT, directory, line, read, write_lines  # noqa: F401

from lclm_jax.reports import course, curves, findings, history
from lclm_jax.reports.html import picture

LOOKS = [(20, 6.0), (40, 5.5), (40, 5.0)]  # the last step was read again after an interruption


def look(stage: str, step: int, latents: float, text: float = 4.0, nothing: float = 8.0) -> dict:
    losses = {"latents": latents, "text": text, "nothing": nothing}
    each = {
        view: {"loss": loss, "accuracy": loss / 100, "tokens": 4096}
        for view, loss in losses.items()
    }
    return {
        "stage": stage,
        "step": step,
        "time": 1000.0 + step,
        "streams": {"reconstruction/docs": each, "sft/tasks": each},
    }


def event(kind: str, time: float, step: int = 0, stage: str = "adapter", **more) -> dict:
    return {"time": time, "event": kind, "stage": stage, "step": step, **more}


EVENTS = [
    event("started", 900.0),
    event("compiled", 910.0, 1, seconds=9.87),
    event(
        "skipped",
        1000.0,
        7,
        loss=math.nan,
        gradient_norm=2.5,
        records=[f"docs/{n}" for n in range(40)],
    ),
    event("damaged", 4630.0, 40, checkpoint="40", reason=f"params: {SCRIPT}"),
    event("changed", 4631.0, 20, settings={"data.batch_rows": [8, 16]}),
    event("resumed", 4640.0, 20, **{"from": 20}),
    event("skipped", 4650.0, 7, stage="all", loss=1.5, gradient_norm=math.inf, records=["code/1"]),
]


def rich(stage: str, step: int, steps: int, time: float, **more) -> dict:
    """A line of the log with all that is measured."""
    parts = {"encoder": 0.5, "adapter": 0.25}
    figures = {
        f"{name}/{part}": value
        for name in ("gradient_norm", "rate")
        for part, value in parts.items()
    }
    figures |= {f"update_norm/{part}": 0.02 for part in parts} | {
        f"parameter_norm/{part}": 10.0 for part in parts
    }
    speed = {"step_seconds": 1.5, "flops_per_second": 1.8e14, "mfu": 0.413, "waiting": 0.004}
    latents = {
        "context_tokens": 4000,
        "latents": 1000,
        "fill": 0.97,
        "window_fill": 0.985,
        "gradient_norm": 0.6,
        "skipped": 0,
    }
    return line(stage, step, steps, 5.0) | figures | speed | latents | {"time": time} | more


RICH = [
    rich("adapter", 20, 40, 1010.0),
    rich("adapter", 40, 40, 1030.0),
    rich("all", 30, 60, 4700.0, skipped=1),
]


@pytest.fixture
def followed(directory) -> Path:
    """A run with all that a run may leave behind."""
    write_lines(directory / "log.jsonl", RICH)
    write_lines(
        directory / "validation.jsonl",
        [look("adapter", step, loss) for step, loss in LOOKS] + [look("all", 30, 4.5)],
    )
    write_lines(directory / "events.jsonl", EVENTS)
    return directory


@pytest.fixture
def drawn(monkeypatch) -> dict:
    """The figures of the page by their alt text, as they were drawn."""
    figures = {}

    def keep(caption, figure, alt):
        figures[alt] = figure
        return picture(caption, figure, alt)

    monkeypatch.setattr(course, "picture", keep)
    return figures


@pytest.fixture
def unpainted(monkeypatch):
    """Figures are made but not painted, which takes most of a page's time."""
    monkeypatch.setattr("lclm_jax.reports.html.as_data_uri", lambda figure: "data:,")


def find(drawn: dict, opening: str):
    return next(figure.axes[0] for alt, figure in drawn.items() if alt.startswith(opening))


def test_what_went_on_inside_is_drawn_and_said(followed, drawn):
    page = read(followed)
    for opening in (
        "Gradient norm over the steps of the run. At the end: encoder 0.5, adapter 0.25.",
        "Update norm over the steps of the run. At the end: encoder 0.02, adapter 0.02.",
        "Update / parameters over the steps of the run. At the end: encoder 0.002, adapter 0.002.",
        "Learning rate over the steps of the run. At the end: encoder 0.5, adapter 0.25.",
        "Tokens per latent over the steps of the run. At the end: 4.",
        "Budgets in use over the steps of the run. At the end: positions 97.0 %, windows 98.5 %.",
        "Positions a second over the steps of the run. At the end: 1,024.",
        "Use of the time over the steps of the run. At the end: waiting for data 0.4 %, of the chip&#x27;s peak 41.3 %.",
    ):
        assert f'alt="{opening}' in page, opening
    norms = find(drawn, "Gradient norm")
    assert norms.get_yscale() == "log"
    steps = [list(one.get_xdata()) for one in norms.get_lines() if one.get_label() == "encoder"]
    assert steps == [[20, 40]] and [40 + 30] in [
        list(one.get_xdata()) for one in norms.get_lines()
    ]  # of the run, not the stage
    assert [7, 47] in [list(one.get_xdata()) for one in norms.get_lines()]  # skipped
    assert "1.80e+14" in page and "The peak of this device is not known" not in page


def test_without_a_known_peak_there_is_no_share_of_it(followed, unpainted):
    write_lines(followed / "log.jsonl", [one | {"mfu": None} for one in RICH])
    page = read(followed)
    assert "At the end: waiting for data 0.4 %. In all" in page
    assert "of the chip&#x27;s peak" not in page and "The peak of this device is not known" in page


def test_held_out_documents(followed, drawn, unpainted):
    page = read(followed)
    loss = "Lines of the held-out loss of sft/tasks. First: 6.000 from latents, 4.000 from full text, 8.000 from nothing."
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
def test_held_out_figures_that_are_missing_or_not_finite(followed, view):
    broken = look("all", 60, math.nan)
    del broken["streams"]["sft/tasks"][view]
    write_lines(
        followed / "validation.jsonl",
        [look("adapter", 40, 9.0, text=8.5), broken, look("of another run", 1, 1.0)],
    )
    page = read(followed)
    assert "nan" not in re.sub(r'src="[^"]*"', "", page)
    assert (
        "The full text did not lower the loss of any stream" in page
        and "step 100 of the run" in page
    )


def test_what_happened_is_told(followed, unpainted):
    page = read(followed)
    told = (
        "It was started 2 times; 2 steps were skipped because loss or gradients were not finite; "
        "1 damaged checkpoint was passed over; settings were changed once. "
        "Between sessions, from the last line written to the next start, 1 h 0 min passed."
    )
    assert page.count(told) == 2  # in the summary and above the timeline
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


def test_a_long_timeline_is_folded(followed, unpainted):
    write_lines(followed / "events.jsonl", EVENTS * 3)
    assert "<details><summary>All 21 events</summary>" in read(followed)
    write_lines(
        followed / "events.jsonl",
        EVENTS[:1] + [event("skipped", 1000.0 + n, n) for n in range(1, 5000)],
    )
    page = read(followed)
    assert (
        "4,000 more" in page
        and page.count("step skipped") == 999
        and "4,999 steps were skipped" in page
    )


@pytest.mark.parametrize(
    ("events", "times", "expected"),
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
def test_sessions_and_the_time_between(events, times, expected):
    lines = [event(kind, time) for kind, time in events]
    assert list(history.sessions(lines, times).values()) == expected


def test_steps_that_were_taken_anew_count_once(directory, unpainted):
    again = [
        line("adapter", step, 40, loss) for step, loss in ((20, 6.0), (37, 5.5), (40, 5.0))
    ] + [line("all", 30, 60, 4.0)]
    write_lines(
        directory / "log.jsonl", again + [line("adapter", 30, 40, 5.2)]
    )  # a checkpoint was damaged: back to 20
    (adapter,) = findings.read_log(directory / "log.jsonl")
    assert [one["step"] for one in adapter.lines] == [20, 30]
    assert "in stage adapter, step 30 of 100" in read(directory)


def test_figures_that_are_not_finite(followed, drawn):
    bad = rich(
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
    write_lines(followed / "log.jsonl", [*RICH, rich("all", 50, 60, 4750.0, **zero), bad])
    page = read(followed)
    assert "nan" not in re.sub(r'src="[^"]*"', "", page)
    assert "sft/tasks 5.00" in page  # the last that is finite
    write_lines(followed / "log.jsonl", [bad])
    page = read(followed)
    assert "NaN" not in page and "– (16.7 %)" in page


@pytest.mark.parametrize("kept", [("log.jsonl",), ("validation.jsonl",), ("events.jsonl",), ()])
def test_one_line_of_one_file_makes_a_page(followed, kept):
    for name in ("log.jsonl", "validation.jsonl", "events.jsonl"):
        path = followed / name
        if name in kept:
            path.write_text(
                path.read_text(encoding="utf-8").splitlines()[0] + '\n[1]\n{}\n{"stage": "ad',
                encoding="utf-8",
            )
        else:
            path.unlink()
    page = read(followed)
    for name in ("log.jsonl", "validation.jsonl", "events.jsonl"):
        assert (f"There is no {name}" in page) == (name not in kept)
    assert ("It was started once; no step was skipped." in page) == (kept == ("events.jsonl",))


def test_many_lines_become_few_points():
    points = [(step, float(step), 1.0) for step in range(1, 100_001)]
    piece = curves.thin(points, 250)
    assert len(piece.steps) == 400 and piece.steps[-1] == 100_000
    assert piece.means[0] == pytest.approx(125.5) and (piece.lows[0], piece.highs[0]) == (1, 250)
    some = curves.thin([(1, 2.0, 3.0), (2, 6.0, 1.0), (3, math.nan, 1.0), (4, None, 1.0)], 2)
    assert (some.steps, some.means[0]) == ([2, 4], 3.0) and math.isnan(
        some.means[1]
    )  # by weight, and nothing finite


def test_a_long_run_is_drawn_in_few_points(followed, drawn, monkeypatch, unpainted):
    monkeypatch.setattr(curves, "MOST", 10)
    lines = [rich("adapter", step, 40, 1000.0 + step, fill=step / 100) for step in range(1, 41)]
    write_lines(followed / "log.jsonl", [*lines, rich("all", 1, 60, 1050.0)])
    read(followed)
    first, *_ = find(drawn, "Budgets in use").get_lines()
    assert list(first.get_xdata()) == [5, 10, 15, 20, 25, 30, 35, 40]
    assert first.get_ydata()[0] == pytest.approx(0.03)
