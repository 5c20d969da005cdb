"""The report of a run: its figures arrive on the page, strange text is escaped, nothing is loaded from elsewhere."""

import json
import math
import re
import sys
from pathlib import Path

import pytest

from lclm_jax.reports import findings
from lclm_jax.reports.html import element, mark_differences
from lclm_jax.reports.run import ReportError, write_report

SCRIPT = "<script>alert('x')</script>"
TOWER = {
    "vocab": 512,
    "width": 32,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 8,
    "mlp": 64,
}
CONFIG = {
    "model": {
        "encoder": TOWER,
        "decoder": TOWER,
        "compression": {"ratio": 4, "window": 16, "pooling": "mean", "overlap": 0},
    },
    "stages": [{"name": "adapter", "steps": 40}, {"name": "all", "steps": 60}],
    "data": {"batch_rows": 8, "row_positions": 128},
}


def line(
    stage: str, step: int, steps: int, loss: float, streams=("reconstruction/docs", "sft/tasks")
) -> dict:
    each = {name: {"loss": loss, "accuracy": 1 / (1 + loss), "tokens": 500} for name in streams}
    head = {"stage": stage, "step": step, "steps": steps, "loss": loss, "trained_tokens": 1000.0}
    return head | {"positions_per_second": 1024.0, "streams": each}


LOG = [
    line("adapter", 20, 40, 6.0),
    line("adapter", 40, 40, 5.55),
    line("adapter", 40, 40, 5.0),  # written again after an interruption
    line("all", 60, 60, 2.22, ("reconstruction/docs",)),
]


def share(value: float, half: float = 0.02) -> dict:
    return {
        "value": value,
        "low": max(0.0, value - half),
        "high": min(1.0, value + half),
        "count": 1000,
    }


def views(latents: float, text: float, nothing: float, half: float = 0.02) -> dict:
    values = {"latents": latents, "text": text, "nothing": nothing}
    return {
        view: {"accuracy": share(value, half), "loss": 3 * (1 - value)}
        for view, value in values.items()
    }


def cost(tokens: int) -> dict:
    plain = {
        "positions": tokens,
        "cache_bytes": 512 * tokens,
        "encoder_flops": 0.0,
        "adapter_flops": 0.0,
    }
    compressed = {
        "positions": tokens // 4 + 2,
        "cache_bytes": 128 * tokens,
        "encoder_flops": 2e5 * tokens,
        "adapter_flops": 1e4 * tokens,
    }
    return {
        "tokens": tokens,
        "plain": plain | {"decoder_flops": 1e6 * tokens},
        "compressed": compressed | {"adapter_flops": 1e4 * tokens, "decoder_flops": 2.5e5 * tokens},
    }


EVALUATION = {
    "step": 100,
    "seconds": 480.0,
    "parameters": {"encoder": 1_000_000, "adapter": 20_000, "decoder": 1_500_000},
    "ratio": 4,
    "window": 16,
    "reconstruction": [
        {"source": "docs", "lengths": [8, 16], "passages": 50} | views(0.613, 0.9, 0.2),
        {"source": "docs", "lengths": [16, 32], "passages": 50} | views(0.4, 0.9, 0.2),
    ],
    "continuation": [
        {"source": "code", "documents": 30, "latents": 3.2, "text": 3.0, "nothing": 3.5}
    ],
    "questions": {
        "questions": 128,
        "latents": share(0.055),
        "text": share(0.75),
        "nothing": share(0.06),
    },
    "cost": {
        "this model": [cost(n) for n in (64, 256, 1024)],
        "published 0.6B + 4B, ratio 16": [cost(n) for n in (1024, 16384, 262144)],
    },
    "samples": {
        "reconstruction": [
            {"source": "docs", "passage": f"one two {SCRIPT}", "written": f"one zwei {SCRIPT}"}
        ],
        "continuation": [{"source": "docs", "opening": SCRIPT, "truth": SCRIPT, "written": SCRIPT}],
        "questions": [
            {
                "context": SCRIPT,
                "question": "Who?",
                "answer": "Ben",
                "from_latents": "Cy",
                "from_text": "Ben",
                "from_nothing": SCRIPT,
            }
        ],
    },
}
ROUND_TRIP = {
    "directory": "hf/100",
    "tensors": 77,
    "bytes": 12_300_000,
    "largest_logit_difference": 0.0,
    "identical": True,
}


def write_lines(path: Path, lines: list[dict]):
    path.write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")


def fabricate(directory: Path) -> Path:
    (directory / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    (directory / "log.jsonl").write_text(
        "".join(json.dumps(one) + "\n" for one in LOG), encoding="utf-8"
    )
    (directory / "evaluation.json").write_text(json.dumps(EVALUATION), encoding="utf-8")
    (directory / "round_trip.json").write_text(json.dumps(ROUND_TRIP), encoding="utf-8")
    return directory


@pytest.fixture
def directory(tmp_path) -> Path:
    return fabricate(tmp_path)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    return read(fabricate(tmp_path_factory.mktemp("run")))


def read(directory: Path) -> str:
    return write_report(directory).read_text(encoding="utf-8")


def test_the_page_has_the_figures(page):
    for figure in (
        "61.3 % (59.3–63.3)",
        "5.5 % (3.5–7.5)",
        "3.200",
        "2,520,000",
        "1,000,000",
        "12.3 MB",
        "77 tensors",
        "2.22 (31.1 %)",
    ):
        assert figure in page
    assert "in 2 of 3 tests the latents clearly beat" in page
    assert "close 59.0 % of the gap" in page  # (0.613 - 0.2) / (0.9 - 0.2)
    assert (
        "Questions answered exactly: 5.5 % from latents, 75.0 % from the full text, 6.0 % from nothing. The latents are no"
        in page
    )
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
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;" in page


def test_missing_files_are_named_with_what_makes_them(directory):
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
    adapter, everything = findings.read_log(path)
    assert [(one["step"], one["loss"]) for one in adapter.lines] == [(20, 6.0), (40, 5.0)]
    assert (everything.start, everything.last) == (40, 60)
    assert findings.trained_tokens([adapter, everything]) == 3000
    assert findings.training_seconds([adapter, everything], CONFIG["data"]) == pytest.approx(100)
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
    item = findings.Comparison(
        "questions", share(latents, half), share(text, half), share(nothing, half)
    )
    assert verdict in findings.judge(item)


def test_gaps():
    assert findings.gap_closed(latents=0.5, text=0.8, nothing=0.2) == pytest.approx(0.5)
    assert findings.gap_closed(latents=0.5, text=0.2, nothing=0.2) is None
    assert "close 60.0 % of the gap" in findings.judge_continuation(EVALUATION["continuation"][0])


def test_an_empty_evaluation_makes_a_page(directory):
    none = {"value": math.nan, "low": math.nan, "high": math.nan, "count": 0}
    empty = {"questions": 0, "latents": none, "text": none, "nothing": none}
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
    assert (
        "Docs passages of 8 to 16 tokens reconstructed by ratio: 90.0 % at ratio 2, 50.0 % at ratio 16; 20.0 %"
        in page
    )
    assert "<h2>Ratios</h2>" in page and "<h2>Ratios</h2>" not in read(fabricate(directory))


def test_what_was_not_tested_has_no_section(directory):
    samples = EVALUATION["samples"] | {"continuation": [], "questions": []}
    changed = EVALUATION | {"questions": None, "continuation": [], "samples": samples}
    (directory / "evaluation.json").write_text(json.dumps(changed), encoding="utf-8")
    page = read(directory)
    assert "<h2>Reconstruction</h2>" in page and "uestions" not in page.partition("<details>")[0]


def test_elements_escape_all_but_html():
    assert (
        element("p", "a < b", element("b", "&"), title='"')
        == '<p title="&quot;">a &lt; b<b>&amp;</b></p>'
    )


def test_differing_words_are_marked():
    first, second = mark_differences("the cat  sat", "the <dog>  sat down")
    assert first == "the <mark>cat</mark>  sat"
    assert second == "the <mark>&lt;dog&gt;</mark>  sat <mark>down</mark>"


def test_a_directory_that_is_no_run_is_named(directory):
    with pytest.raises(ReportError, match=r"elsewhere is not a run: it has no config.json"):
        write_report(directory / "elsewhere")


def test_figures_older_than_the_training_are_called_so(directory):
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
