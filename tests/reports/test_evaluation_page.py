"""The page of an evaluation shows scores, errors, controls and the paper's points."""

import re
from dataclasses import replace

import pytest

from lclm_jax.evaluation.paper import paper_scores
from lclm_jax.evaluation.results import Results
from lclm_jax.evaluation.statistics import Mean
from lclm_jax.reports import evaluation
from lclm_jax.reports.evaluation import MAX_ANSWER_CHARACTERS, MAX_QUESTIONS, write_page
from lclm_jax.reports.formats import difference, score, verdict
from lclm_jax.reports.score_plots import CostPoint, pareto_front, plot_by_length, plot_by_ratio
from tests.support.results import COMMAND, RULER, make_results, make_samples

VIEWS = ("text", "nothing", "latents 4x", "latents 16x", "first 4x", "first 16x", "random 16x")


@pytest.fixture
def figures(monkeypatch) -> dict:
    """The figures of pages by their captions, as they were drawn."""
    drawn = {}
    original = evaluation.picture

    def keep(figure, description, caption=""):
        drawn[caption] = figure
        return original(figure, description, caption)

    monkeypatch.setattr(evaluation, "picture", keep)
    return drawn


def write(directory, results: Results) -> str:
    return write_page(directory, results).read_text(encoding="utf-8")


def hollow_points(figure) -> list[tuple[float, float]]:
    """The points of all lines with white markers."""
    lines = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "white"]
    return [point for line in lines for point in zip(*line.get_data(), strict=True)]


# --- The page ---


def test_the_page_stands_alone_and_names_the_command_of_every_figure(tmp_path):
    results = make_results(6, VIEWS)
    results.write(tmp_path)
    text = write_page(tmp_path).read_text(encoding="utf-8")
    assert text == write(tmp_path, results)
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    figures = text.count("<figure>")
    assert figures == 1 + 5 + (6 + 2) * 2
    by_score = 1 + 5 + 6 * 2
    assert text.count(f"{COMMAND}</pre>") >= by_score
    assert len(re.findall(r'<pre class="command">python -m launch.efficiency', text)) == 6 * 2 + 4
    assert re.search(r'alt="text: \d.* ± .* at 4k', text)


def test_scores_have_errors_and_differences_have_intervals(tmp_path, unpainted):
    results = make_results(20, VIEWS)
    text = write(tmp_path, results)
    for row in results.family_rows():
        assert score(row.score) in text
        if row.view != "text":
            assert difference(row.difference) in text and verdict(row.difference) in text
    assert "ruler, mean of 3" in text and "Every task of ruler" in text
    assert "Every task of gsm8k" not in text
    assert "75.1" in text  # the paper's 16x at 4k


def test_latents_are_compared_with_controls_of_their_ratio(tmp_path, unpainted):
    results = make_results(20, VIEWS)
    text = write(tmp_path, results)
    tasks = [f"{task}@4096" for task in RULER]
    compared = results.difference("latents 16x", "first 16x", 4096, tasks)
    assert f"{verdict(compared)[0]} {difference(compared)}" in text
    assert "clearly better than nothing and first 16x and random 16x" in text


def test_latents_that_are_no_better_than_truncation_are_called_so(tmp_path, unpainted):
    samples = make_samples([1, 0, 1, 0], "latents 4x") + make_samples([1, 0, 1, 1], "first 4x")
    text = write(tmp_path, Results({}, {}, samples))
    assert "NOT clearly better than first 4x" in text
    assert text.count('<pre class="command">') == 1  # the settings name no command


def test_results_without_measurements_say_how_to_make_them(tmp_path, unpainted, figures):
    text = write(tmp_path, make_results(4, VIEWS, efficiency=False))
    measure = "python -m launch.efficiency --checkpoint CHECKPOINT --lengths 4096,8192,16384"
    assert f"{measure} --out {tmp_path}\n{COMMAND}</pre>" in text
    assert not [name for name in figures if "against" in name]


def test_measurements_and_estimates_are_not_mixed(tmp_path, unpainted, figures):
    text = write(tmp_path, make_results(4, VIEWS))
    assert "Measured on cpu" in text and "Estimated by the compiler for v5p:2x2x1" in text


def test_measurements_that_failed_are_listed(tmp_path, unpainted):
    entry = {"view": "text", "length": 8192, "device": "cpu", "source": "measured"}
    entry |= {"first_token_seconds": None, "peak_bytes": 1e9, "failure": "out of memory"}
    entry["peak_is_exact"] = False
    text = write(tmp_path, replace(make_results(3, VIEWS), efficiency=[entry]))
    assert "text at 8k: out of memory" in text
    assert "No length has both a score and a cost" in text
    assert "Some peaks are upper bounds" in text


def test_what_models_wrote_is_only_text(tmp_path, unpainted):
    (sample,) = make_samples([0.25])
    attack = "<script>alert(1)</script>"
    samples = [replace(sample, answer=attack + "x" * 1000, references=[attack])]
    text = write(tmp_path, Results({"checkpoint": attack}, {"jax": attack}, samples))
    assert "<script" not in text and "&lt;script&gt;" in text
    assert "x" * (MAX_ANSWER_CHARACTERS + 1) not in text
    assert "25 %" in text


def test_samples_stand_side_by_side_and_are_marked(tmp_path, unpainted):
    samples = make_samples([1, 0] * 15, "text") + make_samples([0, 0] * 15, "latents 4x")
    text = write(tmp_path, Results({}, {}, samples))
    assert text.count('<div class="sample">') == MAX_QUESTIONS
    assert text.count("✓ right") == 10 and text.count("✗ wrong") == 30
    assert "ruler_vt (30 questions)" in text
    first = text[text.index("Question 0;") :]
    assert first.index("answer 0 from text") < first.index("answer 0 from latents 4x")


def test_results_without_samples_make_a_page(tmp_path, unpainted):
    assert "All scores" in write(tmp_path, Results({}, {}, []))


def test_metrics_outside_zero_and_one_are_in_tables_only(tmp_path, unpainted, figures):
    samples = make_samples([12.5, 30.0], "text", "wikitext") + make_samples(
        [20.0, 31.0], "latents 4x", "wikitext"
    )
    text = write(tmp_path, Results({}, {}, samples))
    assert "21.2 ± 8.75" in text and figures == {}


def test_the_papers_means_do_not_stand_beside_single_tasks(tmp_path, unpainted):
    samples = [
        sample
        for task in ("longbench_trec", "longbench_lcc")
        for sample in make_samples([1, 0], "text", task, family="longbench")
    ]
    text = write(tmp_path, Results({}, {}, samples))
    assert text.count("<td>45.2</td>") == 1  # beside the mean of both


# --- Pictures ---


def test_the_papers_points_are_hollow(tmp_path, unpainted, figures):
    write(tmp_path, make_results(4, VIEWS))
    by_length = hollow_points(figures["ruler, by length"])
    for length in (4096, 8192, 16384):
        for view in ("text", "latents 4x", "latents 16x"):
            assert (length, paper_scores("ruler", length)[view]) in by_length
    assert (16, pytest.approx(0.7506)) in hollow_points(figures["ruler, 4k tokens"])
    assert (16, pytest.approx(0.675)) in hollow_points(figures["longhealth"])
    seconds = figures["ruler, 4k tokens: score against seconds to the first token"]
    assert (0.063, pytest.approx(0.7506)) in hollow_points(seconds)
    memory = figures["ruler, 4k tokens: score against GB of peak memory"]
    assert (pytest.approx(9.2), pytest.approx(0.7506)) in hollow_points(memory)
    growth = hollow_points(figures["seconds to the first token, by length"])
    assert (1024 * 1024, 10.6) in growth and (256 * 1024, 61.4) in growth
    for figure in figures.values():
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert not hollow_points(figure) or labels[-1] == "paper (H200)"


def test_whiskers_of_answers_that_are_all_right_have_a_length():
    """Their standard error is 0; the interval of the share is drawn."""
    right, wrong, mixed = (Mean.of(scores) for scores in ([1.0] * 20, [0.0] * 20, [1, 0] * 10))
    figure = plot_by_length({"text": {64: right, 128: wrong, 256: mixed}}, {})
    (container,) = figure.axes[0].containers
    lines = [line.get_segments() for line in container.lines[2]]
    ((low, high), (low_wrong, high_wrong), (low_mixed, high_mixed)) = [
        segment[:, 1] for segment in lines[0]
    ]
    assert (low, high) == pytest.approx((0.839, 1), abs=1e-3)
    assert (low_wrong, high_wrong) == pytest.approx((0, 0.161), abs=1e-3)
    assert high_mixed - low_mixed == pytest.approx(2 * 1.96 * mixed.standard_error)


def test_no_two_views_differ_in_colour_alone():
    lines = {view: {1024: Mean(0.5, 0.1, 9), 2048: Mean(0.4, 0.1, 9)} for view in [*VIEWS, "other"]}
    figure = plot_by_length(lines, {})
    styles = {
        (bars.lines[0].get_marker(), bars.lines[0].get_linestyle())
        for bars in figure.axes[0].containers
    }
    assert len(styles) == len(lines)


def test_scores_that_are_not_known_leave_gaps():
    unknown = Mean(float("nan"), None, 0)
    plot_by_length({"text": {1024: unknown}}, {}).canvas.draw()
    plot_by_ratio({"text": unknown, "latents 4x": Mean(0.5, None, 1)}, {}).canvas.draw()


def test_a_front_holds_what_no_other_view_beats():
    def point(view, cost, value):
        return CostPoint(view, cost, Mean(value, 0.01, 100))

    points = [
        point("text", 9, 0.9),
        point("latents 4x", 5, 0.9),
        point("latents 16x", 2, 0.7),
        point("first 16x", 2, 0.3),
        point("first 4x", 6, 0.8),
        point("nothing", 1, 0.1),
    ]
    assert [p.view for p in pareto_front(points)] == ["nothing", "latents 16x", "latents 4x"]
