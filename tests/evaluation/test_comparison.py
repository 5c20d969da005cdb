"""Two results are compared on the questions that both have."""

from dataclasses import replace

import pytest

from lclm_jax.evaluation.comparison import Change, ComparisonError, compare, find_changes
from lclm_jax.evaluation.results import Results
from tests.support.results import make_results, make_samples


def results(*samples, **settings) -> Results:
    return Results(settings, {"jax": "0.10.2"}, [s for group in samples for s in group])


def test_common_questions_are_compared_and_others_counted():
    first = results(make_samples([0, 0, 1, 1, 1]), make_samples([1, 1], "latents 4x"))
    second = results(make_samples([1, 0, 1, 1]), make_samples([1], "nothing"))
    comparison = compare(first, second)
    (row,) = comparison.rows
    assert (row.tasks, row.view) == (("ruler_vt",), "text")
    assert row.first.value == 0.5 and row.second.value == 0.75
    assert row.difference.value == 0.25 and row.difference.count == 4
    assert (comparison.only_first, comparison.only_second) == (3, 1)
    assert comparison.changes == []


def test_the_tasks_of_a_view_are_averaged_last():
    tasks = ("ruler_vt", "ruler_cwe", "wikitext")
    scores = ([0, 0, 1, 1], [1] * 40, [7.5, 9.0])
    first = results(*map(make_samples, scores, ["text"] * 3, tasks))
    second = results(
        *(make_samples([1] * len(s), "text", t) for s, t in zip(scores, tasks, strict=True))
    )
    rows = compare(first, second).rows
    assert [row.tasks for row in rows] == [(task,) for task in tasks] + [tasks[:2]]
    assert [row.is_share for row in rows] == [True, True, False, True]
    assert rows[-1].first.value == 0.75 and rows[-1].second.value == 1
    assert rows[-1].difference.value == 0.25 and rows[-1].difference.count == 44


def test_a_task_is_a_share_in_all_views_or_in_none():
    """A metric that happens to stay below 1 in one view is no percentage there."""
    tasks = ("wikitext", "ruler_vt", "ruler_cwe")
    samples = [sample for task in tasks for sample in make_samples([0.2, 0.9], "text", task)]
    both = results(samples, make_samples([0.5, 3.0], "latents 4x", "wikitext"))
    for view in (None, "text"):
        rows = [row for row in compare(both, both, view).rows if row.view == "text"]
        assert [(row.tasks, row.is_share) for row in rows] == [
            (("wikitext",), False),
            (("ruler_vt",), True),
            (("ruler_cwe",), True),
            (("ruler_vt", "ruler_cwe"), True),
        ]
    shown = [row.is_share for row in both.tables() if row.tasks == ("wikitext",)]
    assert shown == [False, False]


def test_a_question_with_another_prompt_is_another_question():
    samples = make_samples([1, 1])
    changed = [replace(samples[0], prompt="another"), samples[1]]
    comparison = compare(results(samples), results(changed))
    assert comparison.rows[0].difference.count == 1
    assert (comparison.only_first, comparison.only_second) == (1, 1)


def test_one_view_is_compared_where_it_is_named():
    first, second = make_results(4), make_results(4)
    comparison = compare(first, second, "latents 8x")
    assert {row.view for row in comparison.rows} == {"latents 8x"}
    assert all(row.difference.value == 0 for row in comparison.rows)
    assert comparison.only_first == 0


def test_settings_and_versions_that_differ_are_listed():
    first = replace(make_results(2), settings={"command": "a", "limit": 2, "data": {"seed": 1}})
    second = replace(
        make_results(2),
        settings={"command": "b", "limit": 3, "data": {"seed": 2}},
        versions={**first.versions, "jax": "0.11.2"},
    )
    assert compare(first, second).changes == [
        Change("settings: limit", 2, 3),
        Change("settings: data.seed", 1, 2),
        Change("versions: jax", "0.10.2", "0.11.2"),
    ]
    assert find_changes({"a": 1}, {"b": 2}) == [Change("a", 1, None), Change("b", None, 2)]


@pytest.mark.parametrize(
    ("second", "view", "message"),
    [
        (make_samples([1], task="ruler_cwe"), None, "no question in common"),
        ([], None, "no question in common"),
        (
            make_samples([1]),
            "nothing",
            "the first results have the views text; got --view 'nothing'",
        ),
        (make_samples([1], "nothing"), "text", "the second results have the views nothing; got"),
    ],
)
def test_results_without_common_questions_are_refused(second, view, message):
    with pytest.raises(ComparisonError, match=message):
        compare(results(make_samples([1, 0])), results(second), view)
