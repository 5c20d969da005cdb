"""The report of a run: numbers reach the page, text is escaped, and the page stands alone."""

import json
import math
import re
import sys

import pytest
from markupsafe import Markup

from lclm_jax.reports import statements
from lclm_jax.reports.pages import environment, mark_differences
from lclm_jax.reports.records import (
    Continuation,
    ReportError,
    Share,
    group_by_stage,
    parse,
    read_lines,
    read_run,
)
from lclm_jax.reports.run import write_report
from tests.support.runs import CONFIG, EVALUATION, SCRIPT, read, share, write_run


def test_the_page_has_the_numbers(page):
    for number in (
        "61.3 % (59.3–63.3)",
        "5.5 % (3.5–7.5)",
        "3.200",
        "2,520,000",
        "1,000,000",
        "12.3 MB",
        "77 tensors",
        "2.22 (31.1 %)",
    ):
        assert number in page
    assert "in 2 of 3 tests the latents clearly beat" in page
    assert "close 59.0 % of the gap" in page  # (0.613 - 0.2) / (0.9 - 0.2)
    sentence = (
        "Questions answered exactly: 5.5 % from latents, 75.0 % from the full text, "
        "6.0 % from nothing. The latents are no"
    )
    assert sentence in page
    assert "falls, from 61.3 % at 8 to 16 tokens to 40.0 % at 16 to 32" in page


def test_the_page_stands_alone(page):
    assert not re.search(r"https?://", page)
    assert not re.search(r"<(script|link|iframe|object)|@import|url\(", page)
    sources = re.findall(r'src="([^"]{0,30})', page)
    assert len(sources) == 13 and all(
        source.startswith("data:image/svg+xml;base64,") for source in sources
    )
    assert page.count("alt=") == len(sources)


def test_samples_are_escaped(page):
    assert SCRIPT not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in page


def test_missing_files_are_named_with_the_command_that_makes_them(directory):
    for name in ("evaluation.json", "round_trip.json", "log.jsonl"):
        (directory / name).unlink()
    page = read(directory)
    for name in ("evaluation.json", "round_trip.json", "log.jsonl"):
        assert f"There is no {name}" in page
    assert "python -m launch.demo" in page
    assert "step 0 of 100" in page


def test_repeated_and_broken_log_lines(directory):
    path = directory / "log.jsonl"
    path.write_text(path.read_text(encoding="utf-8") + '{"stage": "all", "st', encoding="utf-8")
    adapter, everything = group_by_stage(read_lines(path))
    assert [(logged.step, logged.numbers["loss"]) for logged in adapter.lines] == [
        (20, 6.0),
        (40, 5.0),
    ]
    assert (everything.start, everything.last_step) == (40, 60)
    run = read_run(directory)
    assert run.stages == [adapter, everything]
    assert run.trained_tokens == 3000
    assert run.training_seconds == pytest.approx(100)
    page = read(directory)
    assert "5.00 (16.7 %)" in page and "5.55" not in page


@pytest.mark.parametrize(
    ("latents", "text", "nothing", "half", "verdict"),
    [
        (0.5, 0.8, 0.2, 0.02, "clearly beat nothing and close 50.0 %"),
        (0.25, 0.8, 0.2, 0.05, "may be chance"),
        (0.2, 0.8, 0.2, 0.02, "no better than nothing"),
        (0.5, 0.2, 0.2, 0.02, "better than it reads the text itself"),
        (0.21, 0.2, 0.2, 0.02, "Even the full text does not help"),
    ],
)
def test_a_comparison_is_judged_by_its_intervals(latents, text, nothing, half, verdict):
    shares = [Share(**share(value, half)) for value in (latents, text, nothing)]
    assert verdict in statements.judge(statements.Comparison("questions", *shares))


def test_the_gap_closed_is_a_share_of_the_way_to_the_text():
    assert statements.gap_closed(latents=0.5, text=0.8, nothing=0.2) == pytest.approx(0.5)
    assert statements.gap_closed(latents=0.5, text=0.2, nothing=0.2) is None
    entry = parse(Continuation, EVALUATION["continuation"][0])
    assert "close 60.0 % of the gap" in statements.judge_continuation(entry)


def test_an_empty_evaluation_makes_a_page(directory):
    empty_share = {"value": math.nan, "low": math.nan, "high": math.nan, "count": 0}
    empty = {"questions": 0, "latents": empty_share, "text": empty_share, "nothing": empty_share}
    samples = {"reconstruction": [], "continuation": [], "questions": []}
    changed = EVALUATION | {
        "reconstruction": [],
        "continuation": [],
        "questions": empty,
        "cost": {},
        "samples": samples,
    }
    (directory / "evaluation.json").write_text(json.dumps(changed), encoding="utf-8")
    page = read(directory)
    assert "nothing was tested" in page and "nan" not in re.sub(r'src="[^"]*"', "", page)


def test_a_model_of_several_ratios_is_shown_at_each(directory):
    ratios = {
        ratio: {"accuracy": share(value), "loss": 1.0} for ratio, value in (("2", 0.9), ("16", 0.5))
    }
    changed = EVALUATION | {
        "reconstruction": [EVALUATION["reconstruction"][0] | {"ratios": ratios}]
    }
    (directory / "evaluation.json").write_text(json.dumps(changed), encoding="utf-8")
    page = read(directory)
    sentence = (
        "Docs passages of 8 to 16 tokens reconstructed by ratio: "
        "90.0 % at ratio 2, 50.0 % at ratio 16; 20.0 %"
    )
    assert sentence in page
    assert "<h2>Ratios</h2>" in page and "<h2>Ratios</h2>" not in read(write_run(directory))


def test_skipped_tests_have_no_section(directory):
    samples = EVALUATION["samples"] | {"continuation": [], "questions": []}
    changed = EVALUATION | {"questions": None, "continuation": [], "samples": samples}
    (directory / "evaluation.json").write_text(json.dumps(changed), encoding="utf-8")
    page = read(directory)
    assert "<h2>Reconstruction</h2>" in page and "uestions" not in page.partition("<details>")[0]


def test_templates_escape_all_but_html():
    template = environment().from_string('<p title="{{ title }}">{{ text }}{{ html }}</p>')
    page = template.render(title='"', text="a < b", html=Markup("<b>{}</b>").format("&"))
    assert page == '<p title="&#34;">a &lt; b<b>&amp;</b></p>'


def test_differing_words_are_marked():
    first, second = mark_differences("the cat  sat", "the <dog>  sat down")
    assert first == "the <mark>cat</mark>  sat"
    assert second == "the <mark>&lt;dog&gt;</mark>  sat <mark>down</mark>"


def test_a_directory_that_is_no_run_is_named(directory):
    with pytest.raises(ReportError, match=r"elsewhere is not a run: it has no config.json"):
        write_report(directory / "elsewhere")


def test_an_evaluation_older_than_the_training_is_marked(directory):
    (directory / "evaluation.json").write_text(
        json.dumps(EVALUATION | {"step": 90}), encoding="utf-8"
    )
    assert "These figures are of step 90; training has since reached step 100." in read(directory)


def test_without_matplotlib_the_extra_is_named(directory, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ReportError, match=r"pip install 'lclm_jax\[demo\]'"):
        write_report(directory)


def test_an_unreadable_file_is_named(directory):
    (directory / "evaluation.json").write_text("{", encoding="utf-8")
    with pytest.raises(ReportError, match="evaluation.json is not JSON"):
        write_report(directory)


def test_a_run_whose_settings_have_old_names_is_read(directory):
    expected = read_run(directory)
    config = CONFIG | {"data": {"rows": 8, "positions": 128}}
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    run = read_run(directory)
    assert run == expected and run.training_seconds > 0
