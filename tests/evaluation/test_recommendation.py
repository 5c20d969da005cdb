"""Recommendations from made-up outcomes: every verdict, and the questions that it would take."""

import math

import pytest

from lclm_jax.evaluation.statistics import Difference, Mean
from lclm_jax.evaluation.tuning import Outcome, Recommendation, recommend
from lclm_jax.evaluation.tuning.grid import Grid, truncation_of
from lclm_jax.evaluation.tuning.recommendation import count_needed, judge, lower_bound
from lclm_jax.evaluation.views import View

# Settings with their accuracy and their FLOPs, which are their positions, too.
SWEEP = {
    "text": (0.90, 100),
    "nothing": (0.10, 5),
    "nothing + 2x512": (0.60, 25),
    "latents 16x": (0.70, 20),
    "first 16x": (0.30, 10),
    "latents 8x": (0.895, 35),
    "first 8x": (0.40, 15),
    "latents 4x": (0.90, 50),
    "first 4x": (0.50, 30),
    "expand 16x of 512": (0.91, 60),
}


def make_outcomes(changes=None, count=10_000, half_width=None, encoding=0.0):
    """Return outcomes whose differences have intervals as `count` questions give them.

    `changes` are other values of SWEEP; None leaves a setting out.
    """
    rows = {label: value for label, value in (SWEEP | (changes or {})).items() if value}
    half = 0.5 / math.sqrt(count) if half_width is None else half_width

    def difference(score, other):
        value = score - rows[other][0]
        return Difference(value, value - half, value + half, count)

    controls = [label for label in rows if not label.startswith(("latents", "expand"))]
    return [
        Outcome(
            View.of_label(label),
            Mean(score, half / 2, count),
            flops,
            reading_flops=flops,
            differences={x: difference(score, x) for x in controls if x != label},
            encoding_flops=0.0 if label in controls else encoding,
        )
        for label, (score, flops) in rows.items()
    ]


def change(outcomes, label, **fields):
    """Return outcomes of which one has other fields."""
    return [
        Outcome(**{**vars(outcome), **fields}) if outcome.label == label else outcome
        for outcome in outcomes
    ]


def text_of(advice: Recommendation) -> str:
    return " ".join(advice.sentences)


def test_the_cheapest_setting_that_is_as_good_is_recommended():
    advice = recommend(make_outcomes())
    assert (advice.verdict, advice.view) == ("compress", "latents 8x")
    assert "reads 35 positions in place of 100, with 35 % of the FLOPs" in text_of(advice)
    assert "beats the first tokens at the same number of positions by +49.5" in text_of(advice)
    assert recommend(make_outcomes(), margin=0.3).view == "latents 16x"
    assert recommend(make_outcomes(), margin=0.007).view == "latents 4x"


def test_the_agent_may_be_recommended():
    advice = recommend(make_outcomes({"latents 8x": (0.8, 35), "latents 4x": (0.85, 50)}))
    assert (advice.verdict, advice.view) == ("compress", "expand 16x of 512")


def test_settings_that_are_all_worse_are_not_recommended():
    worse = {"latents 8x": (0.8, 35), "latents 4x": (0.85, 50), "expand 16x of 512": None}
    advice = recommend(make_outcomes(worse))
    assert (advice.verdict, advice.view) == ("do not compress", None)
    assert "All settings are worse" in text_of(advice)
    assert "the best, latents 4x, by -5.0 points" in text_of(advice)


def test_questions_that_need_no_context_recommend_nothing():
    advice = recommend(make_outcomes({"nothing": (0.91, 5), "expand 16x of 512": None}))
    assert advice.verdict == "do not compress"
    assert "answered as well without any context: 91.0 % right without them" in text_of(advice)


def test_documents_that_are_not_shown_to_help_are_no_evidence():
    few = make_outcomes({"nothing": (0.85, 5)}, count=30)
    advice = recommend(few)
    assert advice.verdict == "cannot tell" and "not shown that the documents help" in text_of(
        advice
    )
    assert advice.questions_needed == 100  # for half an interval of 5 points


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("first 8x", "Truncation (first 8x)"),
        ("nothing + 2x512", "Retrieval alone (nothing + 2x512)"),
    ],
)
def test_what_is_simpler_and_as_good_is_preferred(label, name):
    advice = recommend(make_outcomes({label: (0.9, 25)}))
    assert advice.verdict == "do not compress"
    assert f"{name} answers as well as latents 8x at less cost" in text_of(advice)
    dearer = recommend(make_outcomes({label: (0.9, 40)}))
    assert dearer.verdict == "compress", "it is no rival at more cost"


def test_a_setting_that_is_not_shown_to_beat_truncation_says_so():
    advice = recommend(make_outcomes({"latents 8x": (0.889, 35), "first 8x": (0.8845, 15)}))
    assert (advice.verdict, advice.view) == ("compress", "latents 8x")
    assert "NOT shown to beat the first tokens" in text_of(advice)


def test_short_documents_save_nothing():
    outcomes = make_outcomes({"text": (0.90, 20)})
    advice = recommend(outcomes)
    assert advice.verdict == "do not compress"
    assert "so short that nothing is saved: latents 16x reads 20 positions" in text_of(advice)


def test_encoding_that_is_not_shared_costs_more_than_it_saves():
    advice = recommend(make_outcomes(encoding=200.0), questions_per_document=2)
    assert advice.verdict == "do not compress"
    assert "costs more computation than it saves" in text_of(advice)
    assert "takes 220 % of the FLOPs, at 2 question(s) about each document" in text_of(advice)
    assert "pay from about 5 questions about each document on" in text_of(advice)  # 2 * 200 / 80


def test_too_few_questions_name_how_many_would_do():
    outcomes = make_outcomes({"expand 16x of 512": None}, count=400)  # 2.5 points to either side
    advice = recommend(outcomes)
    assert (advice.verdict, advice.view) == ("cannot tell", "latents 4x")
    assert "400 questions are too few" in text_of(advice)
    assert advice.questions_needed == 625  # 400 * (2.5 / 2) ** 2
    assert "About 625 questions would be needed" in text_of(advice)


def test_a_few_questions_that_are_all_answered_alike_show_little():
    changes = {"latents 8x": (0.9, 35), "expand 16x of 512": None}
    advice = recommend(make_outcomes(changes, count=20, half_width=0.0))
    assert advice.verdict == "cannot tell" and advice.questions_needed == 98
    advice = recommend(make_outcomes(changes, count=98, half_width=0.0))
    assert (advice.verdict, advice.view) == ("compress", "latents 8x")


def test_documents_that_do_not_fit_uncompressed_are_compared_with_the_controls():
    unknown = Difference(math.nan, None, None, 0)
    outcomes = [
        Outcome(**{**vars(outcome), "differences": {**outcome.differences, "text": unknown}})
        for outcome in make_outcomes()
    ]
    outcomes = change(outcomes, "text", score=Mean(math.nan, None, 0), unanswered=50)
    advice = recommend(outcomes)
    assert (advice.verdict, advice.view) == ("compress", "expand 16x of 512")
    assert "50 of 50 questions have documents that do not fit" in text_of(advice)
    useless = {label: (0.1, flops) for label, (_, flops) in SWEEP.items()}
    nothing = make_outcomes(useless)
    nothing = change(nothing, "text", score=Mean(math.nan, None, 0), unanswered=50)
    assert recommend(nothing).verdict == "cannot tell"


def test_questions_whose_documents_do_not_fit_are_counted():
    outcomes = change(make_outcomes(), "text", unanswered=7)
    assert "7 of 10,007 questions have documents that do not fit" in text_of(recommend(outcomes))
    outcomes = change(make_outcomes(), "latents 8x", unanswered=7)
    assert recommend(outcomes).view == "latents 4x", "it cannot read what the baseline can"


def test_settings_without_answers_are_left_out():
    empty = {"score": Mean(math.nan, None, 0), "unanswered": 9}
    outcomes = make_outcomes()
    for label in [label for label in SWEEP if label.startswith(("latents", "expand"))]:
        outcomes = change(outcomes, label, **empty)
    assert "do not fit the decoder in any setting" in text_of(recommend(outcomes))


def test_a_baseline_that_cannot_read_is_noted():
    advice = recommend(make_outcomes({"text": (0.1, 100), "expand 16x of 512": None}))
    assert (advice.verdict, advice.view) == ("compress", "latents 16x")
    assert "The uncompressed decoder is not shown to read these documents" in text_of(advice)


@pytest.mark.parametrize(
    ("values", "judgement", "needed"),
    [
        ((0.0, -0.005, 0.005, 400), "as good", 98),
        ((0.0, 0.0, 0.0, 40), "undecided", 98),
        ((0.0, None, None, 1), "undecided", 98),
        ((-0.03, -0.07, 0.01, 400), "undecided", None),
        ((-0.03, -0.04, -0.02, 400), "worse", None),
        ((-0.01, -0.03, -0.001, 400), "undecided", 1600),
        ((math.nan, None, None, 0), "undecided", None),
    ],
)
def test_differences_are_judged(values, judgement, needed):
    difference = Difference(*values)
    assert judge(difference, 0.02) == judgement
    assert count_needed(difference, 0.02) == needed
    low = lower_bound(difference)
    assert low is None or low <= difference.value - 1.95 / difference.count


def test_the_grid_has_controls_for_every_setting(model_config):
    views = Grid((4,), (32, 64), (1,)).views(model_config)
    labels = [view.label for view in views]
    assert labels[0] == "nothing" and labels[-1] == "text" and len(set(labels)) == len(labels)
    for view in views:
        if view.name in ("latents", "expand"):
            assert truncation_of(view) in views
        if view.name == "latents" and view.raw_chunks:
            assert View("nothing", None, view.chunk_tokens, view.raw_chunks) in views
    assert {"latents 4x + 1x64", "expand 4x of 32", "nothing + 1x32"} <= set(labels)
    plain = Grid((4,), raw_chunks=(0,), expand=False).views(model_config)
    assert [view.label for view in plain] == ["nothing", "latents 4x", "first 4x", "text"]
