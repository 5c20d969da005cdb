"""One evaluation of tasks of ours and of the harness, resumed, guarded and complete."""

import json
from dataclasses import replace
from types import SimpleNamespace

import jax
import pytest

from lclm_jax.config import ConfigError
from lclm_jax.errors import FileError, TextError
from lclm_jax.evaluation import run as evaluation_run
from lclm_jax.evaluation.answering import Answerer
from lclm_jax.evaluation.identity import find_identity
from lclm_jax.evaluation.questions import Passage, ask
from lclm_jax.evaluation.request import Request
from lclm_jax.evaluation.results import Results
from lclm_jax.evaluation.run import evaluate
from lclm_jax.files import DirectoryError, locked
from lclm_jax.inference.language_model import LanguageModel
from tests.support.prose import PROSE

REQUEST = Request(["prose"], views=("latents", "text", "nothing", "first", "random"), ratios=(2, 8))


@pytest.fixture(autouse=True)
def prose_task(monkeypatch):
    def load(settings):
        return [
            ask("prose", n, [Passage(PROSE[n : n + 200]), "Why?"], max_tokens=4, references=["so"])
            for n in range(settings.limit or 5)
        ]

    monkeypatch.setitem(evaluation_run.TASKS, "prose", load)


def test_every_question_has_a_sample_in_every_view(model, tmp_path):
    results = evaluate(model, REQUEST, tmp_path, {"command": "as it was typed"})
    labels = ["latents 2x", "latents 8x", "text", "nothing", "first 2x", "first 8x"]
    assert results.views == [*labels, "random 2x", "random 8x"]
    assert len(results.samples) == 5 * 8
    assert results.settings["command"] == "as it was typed"
    assert (results.settings["ratios"], results.settings["checkpoint"]) == ([2, 8], "runs/first")
    by_question = {}
    for sample in results.samples:
        by_question.setdefault(sample.number, set()).add(sample.prompt)
        assert sample.scores == {"contains_any": float("so" in sample.answer.lower())}
    assert all(len(prompts) == 1 for prompts in by_question.values())
    read = Results.read(tmp_path)
    assert [sample.to_dict() for sample in read.samples] == [
        sample.to_dict() for sample in results.samples
    ]


def test_measurements_in_the_directory_enter_the_results(model, tmp_path):
    entry = {"view": "text", "length": 64, "device": "cpu", "source": "measured"}
    (tmp_path / "efficiency.jsonl").write_text(json.dumps(entry), encoding="utf-8")
    evaluate(model, replace(REQUEST, views=("text",), limit=1), tmp_path)
    assert Results.read(tmp_path).efficiency == [entry]


def test_a_second_run_answers_only_what_is_new(model, tmp_path, monkeypatch):
    asked = []
    original = Answerer._answer_batch
    monkeypatch.setattr(
        Answerer,
        "_answer_batch",
        lambda self, batch, view, *rest: (
            asked.append(view.label) or original(self, batch, view, *rest)
        ),
    )
    first = evaluate(model, replace(REQUEST, views=("text",)), tmp_path)
    assert set(asked) == {"text"}
    asked.clear()
    both = evaluate(model, replace(REQUEST, views=("text", "nothing")), tmp_path)
    assert set(asked) == {"nothing"}
    texts = [sample for sample in both.samples if sample.view == "text"]
    assert texts == list(first.samples)


def test_answers_of_another_model_are_refused(model, model_config, noisy, tokenizer, tmp_path):
    evaluate(model, replace(REQUEST, limit=1, views=("text",)), tmp_path)
    before = (tmp_path / "answers.jsonl").read_bytes()
    params = jax.tree.map(lambda x: x * 1.5, noisy)
    other = LanguageModel(model.config, params, tokenizer, name="runs/second")
    with pytest.raises(FileError, match=r"answers of runs/first, whose .* those of runs/second"):
        evaluate(other, replace(REQUEST, limit=1), tmp_path)
    assert (tmp_path / "answers.jsonl").read_bytes() == before
    same = LanguageModel(model.config, noisy, tokenizer, name="copied")
    assert find_identity(same) == find_identity(model) != find_identity(other)


def test_what_is_too_long_in_one_view_is_answered_in_the_others(model, tmp_path, caplog):
    config = replace(model.config, decoder=replace(model.config.decoder, max_positions=100))
    short = LanguageModel(config, model.params, model.tokenizer)
    results = evaluate(short, replace(REQUEST, views=("text", "nothing")), tmp_path)
    assert results.views == ["nothing"]
    (failure,) = results.settings["failures"]
    assert (failure["task"], failure["view"]) == ("prose", "text")
    assert "up to 100 positions" in failure["reason"] and failure["reason"] in caplog.text
    with pytest.raises(TextError, match="up to 100 positions"):
        evaluate(short, replace(REQUEST, views=("text",)), tmp_path)


def test_each_length_of_a_task_is_read_for_itself(model, tmp_path, monkeypatch):
    def load(settings):
        return [
            ask(f"sized@{n}", 0, [Passage(PROSE[:n]), "?"], max_tokens=2, tags={"length": n})
            for n in (40, 900)
        ]

    monkeypatch.setitem(evaluation_run.TASKS, "sized", load)
    config = replace(model.config, decoder=replace(model.config.decoder, max_positions=200))
    short = LanguageModel(config, model.params, model.tokenizer)
    results = evaluate(short, replace(REQUEST, tasks=("sized", "sized"), views=("text",)), tmp_path)
    assert [(sample.task, sample.view) for sample in results.samples] == [("sized@40", "text")]
    assert [failure["task"] for failure in results.settings["failures"]] == ["sized@900"]


def test_tasks_of_two_origins_do_not_share_a_family(model, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="needs the extra evaluation")
    from lclm_jax.evaluation.harness import tasks as harness

    task = SimpleNamespace(family="prose", label="prose_b")
    monkeypatch.setattr(harness, "load_harness_tasks", lambda *_: [task])
    with pytest.raises(ConfigError, match="prose names tasks of this package and of the harness"):
        evaluate(model, replace(REQUEST, tasks=("prose", "prose_b")), tmp_path)


def test_built_in_tasks_are_continued_without_a_template(model, tmp_path):
    request = replace(REQUEST, views=("text",), limit=1, chat_template="never")
    (sample,) = evaluate(model, request, tmp_path).samples
    assert sample.answer == model.complete(PROSE[:200] + "Why?", 4)


def test_memory_that_does_not_suffice_leaves_a_view_out(model, tmp_path, monkeypatch):
    original = Answerer._answer_batch

    def answer(self, batch, view, *rest):
        if view.name == "text":
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")
        return original(self, batch, view, *rest)

    monkeypatch.setattr(Answerer, "_answer_batch", answer)
    results = evaluate(model, replace(REQUEST, views=("text", "nothing"), limit=2), tmp_path)
    assert results.views == ["nothing"] and "RESOURCE" in results.settings["failures"][0]["reason"]


def test_a_question_without_passages_is_answered_once(model, tmp_path, monkeypatch):
    question = ask("plain", 0, ["Why?"], max_tokens=4, references=["so"])
    monkeypatch.setitem(evaluation_run.TASKS, "plain", lambda settings: [question])
    results = evaluate(model, replace(REQUEST, tasks=("plain",)), tmp_path)
    assert len(results.samples) == 8 and len({sample.answer for sample in results.samples}) == 1
    assert len((tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()) == 1


def test_two_runs_cannot_write_one_result(model, tmp_path):
    with locked(tmp_path), pytest.raises(DirectoryError):
        evaluate(model, REQUEST, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"views": ("latent",)}, "views are latents, text"),
        ({"ratios": (16,)}, "compresses at ratio 2, 4, 8; got 16"),
        ({"tasks": ("longhealth",)}, "benchmark_v5.json"),
        ({"contexts": ("prose=whole",)}, "prose=whole is a rule for tasks of the harness"),
    ],
)
def test_what_cannot_be_evaluated_is_named(model, tmp_path, change, message):
    with pytest.raises((ConfigError, FileError), match=message):
        evaluate(model, replace(REQUEST, **change), tmp_path)


def test_an_unknown_task_is_named(model, tmp_path):
    pytest.importorskip("lm_eval", reason="needs the extra evaluation")
    with pytest.raises(ConfigError, match="lookups, .*or a task of the harness, got 'prosa'"):
        evaluate(model, replace(REQUEST, tasks=("prosa",)), tmp_path)


def test_answers_that_were_cut_off_lose_nothing(model, tmp_path):
    request = replace(REQUEST, views=("text",))
    whole = evaluate(model, request, tmp_path)
    file = tmp_path / "answers.jsonl"
    file.write_bytes(file.read_bytes()[:-7])
    (tmp_path / "results.json").write_text("{", encoding="utf-8")
    with pytest.raises(FileError, match=r"results.json"):
        Results.read(tmp_path)
    assert evaluate(model, request, tmp_path).samples == whole.samples
    assert json.loads(file.read_text(encoding="utf-8").splitlines()[-1])["view"] == "text"
