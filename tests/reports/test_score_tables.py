"""Tables of the terminal show every score with its error, and fit their width."""

import io

import pytest
from rich.console import Console

from lclm_jax.evaluation.comparison import compare
from lclm_jax.evaluation.results import Results
from lclm_jax.reports.formats import score
from lclm_jax.reports.terminal import SCORE_TABLE_WIDTH, tabulate_comparison, tabulate_scores
from tests.support.results import VIEWS, make_results, make_samples


def lines_of(tables, width: int = SCORE_TABLE_WIDTH) -> list[str]:
    file = io.StringIO()
    for table in tables:
        Console(width=width, file=file).print(table)
    return file.getvalue().splitlines()


def cells_of(tables) -> list[list[str]]:
    lines = lines_of(tables)
    return [[cell.strip() for cell in line.strip("│┃").split("│")] for line in lines if "│" in line]


@pytest.mark.parametrize("width", [60, 100, 200])
def test_every_score_is_shown_within_the_width(width):
    results = make_results(20)
    tables = tabulate_scores(results, width)
    text = "\n".join(lines_of(tables, width))
    assert "…" not in text
    for row in (*results.tables(baseline=None), *results.family_rows(baseline=None)):
        assert score(row.score) in text
    shown = [str(column.header) for table in tables for column in table.columns[3:]]
    assert shown == list(VIEWS)


def test_means_follow_the_tasks_of_their_length():
    names = [line[0] for line in cells_of(tabulate_scores(make_results(4, ["text"])))]
    assert names[:4] == ["niah_single_1", "niah_multikey_2", "ruler_vt", "ruler, mean of 3"]
    assert names[-2:] == ["longhealth5", "gsm8k"]


def test_a_table_says_how_many_questions_were_asked():
    samples = make_samples([1, 0, 1], "text") + make_samples([1, 0], "latents 4x")
    ((task, tokens, questions, text, latents),) = cells_of(
        tabulate_scores(Results({}, {}, samples))
    )
    assert (task, tokens, questions) == ("ruler_vt", "", "2-3")
    assert text.startswith("66.7 ± ") and latents == "50.0 ± 50.0"


def test_what_was_not_asked_is_a_dash():
    samples = make_samples([1], "text", "a") + make_samples([1], "nothing", "b")
    lines = cells_of(tabulate_scores(Results({}, {}, samples)))
    assert [line[3:] for line in lines] == [["100.0", "–"], ["–", "100.0"]]


def test_names_are_not_markup():
    samples = make_samples([1, 0], "[b]4x", "[red]task")
    results = Results({}, {}, samples)
    text = "".join(lines_of(tabulate_scores(results)))
    assert "[red]task" in text and "[b]4x" in text
    text = "".join(lines_of(tabulate_comparison(compare(results, results), ("[i]a", "[/i]b"))))
    assert all(name in text for name in ("[red]task", "[b]4x", "[i]a", "[/i]b"))


def test_results_without_samples_have_no_table():
    assert tabulate_scores(Results({}, {}, [])) == []


def test_a_comparison_shows_differences_and_warns():
    first = Results(
        {"limit": 4}, {}, make_samples([0, 0, 1, 1]) + make_samples([7, 9], "text", "w")
    )
    second = Results({"limit": 5}, {}, make_samples([1] * 4) + make_samples([8, 10], "text", "w"))
    tables = tabulate_comparison(compare(first, second), ("old", "new"))
    settings, vt, perplexity = cells_of(tables)
    assert settings == ["settings: limit", "4", "5"]
    assert vt[:4] == ["ruler_vt", "4", "50.0 ± 28.9", "100.0 (≥ 51.0)"] and vt[-1] == "≈ unclear"
    assert perplexity[-2:] == ["+1 (+1 to +1)", "≈ unclear"]
    assert "difference: new less old" in "".join(lines_of(tables))
