"""A sweep over one's own questions: complete, resumable, and without an end at long documents."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lclm_jax.config import ConfigError
from lclm_jax.errors import FileError
from lclm_jax.evaluation.answering import Answerer
from lclm_jax.evaluation.questions import Passage, ask
from lclm_jax.evaluation.results import Results
from lclm_jax.evaluation.tuning import Grid, timings, tune
from lclm_jax.evaluation.tuning.timings import choose_question
from lclm_jax.files import DirectoryError, locked
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.reports.evaluation import write_page
from lclm_jax.reports.tuning import describe_recommendation, tabulate_outcomes
from tests.support.prose import PROSE

GRID = Grid((2, 4), (32,), (1,), expand=False)
LABELS = {"text", "nothing", "nothing + 1x32"} | {
    f"{name} {ratio}x{chunks}"
    for name in ("latents", "first")
    for ratio in (2, 4)
    for chunks in ("", " + 1x32")
}


@pytest.fixture(scope="module")
def short(model):
    """The same model with a decoder of 160 positions."""
    config = replace(model.config, decoder=replace(model.config.decoder, max_positions=160))
    return LanguageModel(config, model.params, model.tokenizer, name="runs/short")


def make_questions(lengths=(400, 400, 200)):
    """Return questions about the first characters of a text."""
    return [
        ask("own", n, [Passage(PROSE[:size]), f" What is {n}?"], max_tokens=4, references=["so"])
        for n, size in enumerate(lengths)
    ]


@pytest.fixture
def work(monkeypatch):
    """The labels of views that were answered and measured, in order."""
    done = {"answered": [], "measured": []}
    answer, measure = Answerer._answer_batch, timings._measure

    def answer_batch(self, batch, view, *rest):
        done["answered"].append(view.label)
        return answer(self, batch, view, *rest)

    def measure_view(model, question, view):
        done["measured"].append(view.label)
        return measure(model, question, view)

    monkeypatch.setattr(Answerer, "_answer_batch", answer_batch)
    monkeypatch.setattr(timings, "_measure", measure_view)
    return done


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """A sweep that ran without an interruption, and its directory."""
    directory = tmp_path_factory.mktemp("whole")
    return tune(model, make_questions(), directory, GRID, settings={"command": "typed"}), directory


def test_every_setting_is_answered_measured_and_compared(whole):
    tuning, directory = whole
    assert {outcome.label for outcome in tuning.outcomes} == LABELS
    results = Results.read(directory)
    assert len(results.samples) == 3 * len(LABELS)
    assert results.settings["command"] == "typed"
    assert results.settings["recommendation"]["verdict"] == tuning.recommendation.verdict
    assert {row["view"] for row in results.efficiency} == LABELS
    for outcome in tuning.outcomes:
        figures = outcome.figures
        assert outcome.unanswered == 0 and outcome.score.count == 3
        assert figures.first_token_seconds > 0 and figures.peak_bytes > 0
        assert (figures.compress_seconds > 0) == outcome.is_candidate
        assert (outcome.encoding_flops > 0) == outcome.is_candidate
        assert outcome.label == "text" or outcome.differences["text"].count == 3


def test_documents_are_encoded_once_for_all_questions_about_them(whole, model, tmp_path):
    by_label = {outcome.label: outcome for outcome in whole[0].outcomes}
    same = tune(model, make_questions((400, 400)), tmp_path, replace(GRID, ratios=(4,)))
    different = tune(model, make_questions((400, 401)), tmp_path, replace(GRID, ratios=(4,)))
    shared, apart = (
        next(o for o in tuning.outcomes if o.label == "latents 4x") for tuning in (same, different)
    )
    assert apart.encoding_flops == pytest.approx(2 * shared.encoding_flops, rel=0.1)
    assert by_label["latents 4x"].flops > by_label["latents 4x"].reading_flops
    assert by_label["latents 4x"].reading_flops < by_label["latents 2x"].reading_flops


def test_a_sweep_that_was_interrupted_ends_as_the_whole_one(whole, model, tmp_path, monkeypatch):
    answer, calls = Answerer._answer_batch, []

    def interrupt(self, *arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return answer(self, *arguments)

    monkeypatch.setattr(Answerer, "_answer_batch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tune(model, make_questions(), tmp_path, GRID)
    assert not (tmp_path / "results.json").exists()
    timed = (tmp_path / "first_tokens.jsonl").read_bytes()
    assert tune(model, make_questions(), tmp_path, GRID).results.samples == whole[0].results.samples
    assert (tmp_path / "first_tokens.jsonl").read_bytes() == timed


def test_a_second_run_answers_and_measures_nothing(whole, model, work):
    tuning, directory = whole
    again = tune(model, make_questions(), directory, GRID)
    assert work == {"answered": [], "measured": []}
    assert again.outcomes == tuning.outcomes
    further = tune(model, make_questions(), directory, replace(GRID, ratios=(8,), raw_chunks=(0,)))
    assert set(work["answered"]) == set(work["measured"]) == {"latents 8x", "first 8x"}
    assert len(further.outcomes) == 4


def test_documents_beyond_the_decoders_positions_do_not_end_a_sweep(short, tmp_path):
    questions = make_questions((900, 900, 100, 100))
    tuning = tune(short, questions, tmp_path, replace(GRID, ratios=(8,), expand=True))
    by_label = {outcome.label: outcome for outcome in tuning.outcomes}
    text, latents = by_label["text"], by_label["latents 8x"]
    assert (text.unanswered, text.score.count, text.differences["nothing"].count) == (2, 2, 2)
    assert (latents.unanswered, latents.differences["text"].count) == (0, 2)
    assert by_label["expand 8x of 32"].unanswered > 0
    scores = [sample.score for sample in Results.read(tmp_path).samples if sample.view == "text"]
    assert np.isnan(scores).tolist() == [True, True, False, False]
    assert tuning.results.settings["timed_question"] == 2, "the longest that all settings can read"
    table = tabulate_outcomes(tuning)
    assert "2" in list(table.columns[-1].cells)
    assert write_page(tmp_path, tuning.results).stat().st_size > 1000


def test_documents_that_never_fit_uncompressed_are_still_compared(short, tmp_path):
    tuning = tune(short, make_questions((900, 901)), tmp_path, replace(GRID, ratios=(8,)))
    text = next(outcome for outcome in tuning.outcomes if outcome.label == "text")
    assert (text.unanswered, text.figures.first_token_seconds) == (2, None)
    assert "take up to 160 positions" in text.figures.failure
    assert "2 of 2 questions have documents that do not fit" in describe_recommendation(
        tuning.recommendation
    )


def test_a_baseline_that_fills_the_memory_does_not_end_a_sweep(model, tmp_path, monkeypatch):
    answer, error = Answerer._answer_batch, "RESOURCE_EXHAUSTED: Out of memory"

    def answer_batch(self, batch, view, *rest):
        if view.label == "text":
            raise RuntimeError(error)
        return answer(self, batch, view, *rest)

    monkeypatch.setattr(Answerer, "_answer_batch", answer_batch)
    grid = replace(GRID, ratios=(4,), raw_chunks=(0,))
    tuning = tune(model, make_questions(), tmp_path, grid)
    unanswered = {outcome.label: outcome.unanswered for outcome in tuning.outcomes}
    assert unanswered == {"nothing": 0, "latents 4x": 0, "first 4x": 0, "text": 3}
    assert "3 of 3 questions have documents that do not fit" in tuning.recommendation.sentences[1]
    error = "a defect"
    with pytest.raises(RuntimeError, match="a defect"):
        tune(model, make_questions(), tmp_path, grid)


def test_a_few_documents_say_nothing_about_others(whole):
    note = "further questions about these 2 document(s), not for others"
    assert note in whole[0].recommendation.sentences[-1]


def test_the_timed_question_is_the_longest_that_fits(model, short):
    questions = make_questions((150, 900, 100))
    assert choose_question(questions, model).number == 1
    assert choose_question(questions, short).number == 0
    assert choose_question(make_questions((900, 950)), short).number == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"questions": []}, "at least 2 questions, got 0"),
        ({"questions": make_questions((400,))}, "at least 2 questions, got 1"),
        ({"margin": 0}, "margin between 0 and 1"),
        ({"margin": 2}, "margin between 0 and 1"),
        ({"grid": Grid((16,))}, "compresses at ratio 4, 2, 8, got ratio=16"),
    ],
)
def test_what_cannot_be_tuned_is_named(change, message, model, tmp_path):
    arguments = {"questions": make_questions(), "grid": GRID} | change
    with pytest.raises(ConfigError, match=message):
        tune(model, directory=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists(), "nothing is written before the input is known"


def test_a_directory_has_one_model_and_one_writer(whole, model, short, tmp_path):
    with pytest.raises(FileError, match="answers of runs/first"):
        tune(short, make_questions(), whole[1], GRID)
    with locked(tmp_path), pytest.raises(DirectoryError):
        tune(model, make_questions(), tmp_path, GRID)


def test_the_table_marks_what_is_recommended(whole):
    tuning = whole[0]
    named = replace(tuning.recommendation, verdict="compress", view="latents 4x")
    table = tabulate_outcomes(replace(tuning, recommendation=named))
    marks, labels = (list(column.cells) for column in table.columns[:2])
    assert [label for mark, label in zip(marks, labels, strict=True) if mark] == ["latents 4x"]
    assert labels[:2] == ["text", "nothing"] and set(labels) == LABELS
    assert describe_recommendation(named).startswith("Recommendation: compress, latents 4x\n")


def test_the_page_gives_the_reasons(whole, tmp_path):
    tuning = whole[0]
    text = write_page(tmp_path, tuning.results).read_text(encoding="utf-8")
    assert tuning.recommendation.heading in text
    assert tuning.recommendation.sentences[0][:40] in text
    for cost in ("seconds to the first token", "GB of peak memory"):
        assert f"own: score against {cost}" in text
    assert "launch.efficiency" not in text
    assert json.dumps(tuning.results.settings["margin"]) in text
