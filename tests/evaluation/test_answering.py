"""Answers to questions in views: equal to those of the model asked directly, and resumable."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from lclm_jax.config import ConfigError
from lclm_jax.data.records import CONTEXT_TAGS, Plain, count_latents
from lclm_jax.errors import FileError, TextError
from lclm_jax.evaluation import answering
from lclm_jax.evaluation.answering import Answerer, Reply, answer_key, plan_batches
from lclm_jax.evaluation.answers_file import AnswersFile
from lclm_jax.evaluation.questions import Passage, Question, ask
from lclm_jax.evaluation.views import View, cut_tokens, make_views
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.inference.sampling import GREEDY, Sampling
from tests.support.prose import PROSE

VIEWS = [View("latents", 2), View("latents", 4), View("text"), View("nothing"), View("first", 4)]


@pytest.fixture
def questions():
    lengths = (300, 40, 900, 300, 120)
    return [
        ask(
            "prose",
            n,
            ["Read this.\n", Passage(PROSE[n : n + size]), f"\nWhat is {n}?"],
            max_tokens=6,
        )
        for n, size in enumerate(lengths)
    ]


def answerer(model, path, **settings):
    return Answerer(model, AnswersFile(path), **settings)


def direct(model, question, view):
    """The answer of the public interface to the same question."""
    before, passage, after = question.messages[0]["content"]
    tokens = model.tokenizer.encode(passage.text)
    if view.name in ("text", "nothing"):
        return model.generate(before + (passage.text if view.name == "text" else "") + after, 6)
    count = count_latents(len(tokens), model.config, view.ratio) + CONTEXT_TAGS
    part = tokens[:count] if view.name == "first" else model.compress(passage.text, view.ratio)
    return model.generate([before, part, after], 6)


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.label)
def test_answers_equal_those_of_the_model_asked_directly(view, model, questions, tmp_path):
    replies = answerer(model, tmp_path / "answers.jsonl", batch=4).answer(questions, view)
    assert [reply.text for reply in replies] == [direct(model, q, view) for q in questions]


def test_views_read_as_many_positions_as_they_should(model, questions, tmp_path):
    positions = {}
    for view in [*VIEWS, View("random", 4)]:
        replies = answerer(model, tmp_path / "answers.jsonl").answer(questions, view)
        positions[view.label] = np.array([reply.positions for reply in replies])
    assert (positions["text"] > positions["latents 2x"]).all()
    assert (positions["latents 2x"] > positions["latents 4x"]).all()
    assert (positions["first 4x"] > positions["nothing"]).all()
    assert (positions["first 4x"] == positions["latents 4x"]).all()
    assert (positions["random 4x"] == positions["latents 4x"]).all()


def test_a_run_that_was_cut_off_ends_with_the_same_answers(model, questions, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    view = View("latents", 4)
    expected = answerer(model, whole, batch=2).answer(questions, view)
    lines = whole.read_bytes().splitlines(keepends=True)
    assert len(lines) == len(questions)
    cut.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    asked = []
    original = Answerer._answer_batch
    monkeypatch.setattr(
        Answerer,
        "_answer_batch",
        lambda self, batch, *rest: asked.append(len(batch)) or original(self, batch, *rest),
    )
    assert answerer(model, cut, batch=2).answer(questions, view) == expected
    assert sum(asked) < len(questions), "whole batches are not answered again"
    assert sorted(cut.read_bytes().splitlines()) == sorted(whole.read_bytes().splitlines())
    asked.clear()
    assert answerer(model, cut, batch=2).answer(questions, view) == expected and not asked


def test_a_line_that_is_no_answer_is_named(tmp_path):
    file = tmp_path / "answers.jsonl"
    file.write_text('{"key": "a", "text": ""}\n[1]\n{"key": "b"}\n', encoding="utf-8")
    with pytest.raises(FileError, match="answer in JSON in line 2"):
        AnswersFile(file)


def test_an_answer_depends_on_all_that_its_key_has(questions):
    question, view = questions[0], View("latents", 4)
    others = [
        answer_key(replace(question, max_tokens=7), view),
        answer_key(replace(question, is_chat=False), view),
        answer_key(question, View("latents", 2)),
        answer_key(ask("prose", 0, ["Read this.\n", PROSE[:300], "\nWhat is 0?"]), view),
        answer_key(questions[1], view),
    ]
    assert answer_key(replace(question, task="other", number=9), view) == answer_key(question, view)
    assert len({answer_key(question, view), *others}) == 6


def test_batches_are_powers_of_two_of_one_kind(questions):
    many = [replace(questions[n % 5], number=n, max_tokens=4 + n % 2) for n in range(23)]
    batches = plan_batches(many, View("text"), 4)
    assert sorted(q.number for batch in batches for q in batch) == list(range(23))
    assert all(len(batch) in (1, 2, 4) for batch in batches)
    assert all(len({q.max_tokens for q in batch}) == 1 for batch in batches)
    long = [ask("long", n, [Passage("x" * 200_000)]) for n in range(4)]
    assert [len(batch) for batch in plan_batches(long, View("text"), 4)] == [1, 1, 1, 1]
    assert [len(batch) for batch in plan_batches(long, View("latents", 4), 4)] == [4]


def test_a_passage_is_compressed_once_for_all_questions_about_it(model, encoded, tmp_path):
    questions = [ask("same", n, [Passage(PROSE[:600]), f"Question {n}?"]) for n in range(6)]
    answerer(model, tmp_path / "answers.jsonl", batch=2).answer(questions, View("latents", 4))
    tokens = len(model.tokenizer.encode(PROSE[:600]))
    assert sum(encoded) == -(-tokens // 16)


def test_a_completion_and_the_beginning_of_an_answer_are_read_as_they_stand(model, tmp_path):
    text = "one two three"
    completion = ask("plain", 0, [Passage(text), " four"], is_chat=False, max_tokens=5)
    chat = Question(
        "record",
        0,
        [{"role": "user", "content": [text]}, {"role": "assistant", "content": ["It is"]}],
        max_tokens=5,
    )
    replies = answerer(model, tmp_path / "a.jsonl").answer([completion, chat], View("text"))
    assert replies[0].text == model.complete(f"{text} four", 5)
    record = [
        *model.render([{"role": "user", "content": text}]),
        Plain(model.tokenizer.encode("It is")),
    ]
    assert replies[1].text == model.answer(model.read([record]), 5)[0].text


def test_the_agent_answers_in_the_view_expand(model, questions, tmp_path):
    (reply,) = answerer(model, tmp_path / "a.jsonl").answer(questions[:1], View("expand", 4))
    assert reply.positions > 0
    plain = ask("none", 0, ["no passage"], max_tokens=3)
    (reply,) = answerer(model, tmp_path / "a.jsonl").answer([plain], View("expand", 4))
    assert reply.text == model.generate("no passage", 3)


def test_a_prompt_beyond_the_decoders_positions_names_its_question(model, tmp_path):
    limit = model.config.decoder.max_positions
    config = replace(model.config, decoder=replace(model.config.decoder, max_positions=64))
    short = LanguageModel(config, model.params, model.tokenizer)
    assert limit > 64
    question = ask("long", 3, [Passage(PROSE[:1000]), "?"])
    with pytest.raises(TextError, match=r"long, row 3, text: prompt and answer take up to 64"):
        answerer(short, tmp_path / "a.jsonl").answer([question], View("text"))
    assert not (tmp_path / "a.jsonl").exists()


def test_random_tokens_are_those_of_the_passage_in_order(model):
    tokens = np.arange(100, 400)
    view = View("random", 4)
    kept = cut_tokens(tokens, view, model)
    assert len(kept) == count_latents(300, model.config, 4) + CONTEXT_TAGS
    assert (np.diff(kept) > 0).all() and set(kept) <= set(tokens)
    assert (kept == cut_tokens(tokens, view, model)).all()
    assert (kept != cut_tokens(tokens, View("first", 4), model)).any()


def test_views_are_made_for_each_ratio(model):
    views = make_views(["latents", "text", "first", "text"], [8, 2], model)
    labels = ["latents 8x", "latents 2x", "text", "first 8x", "first 2x"]
    assert [view.label for view in views] == labels
    assert [View.of_label(label) for label in labels] == views
    with pytest.raises(ConfigError, match="views are latents, text, .*; got latent"):
        make_views(["latent"], [8], model)
    with pytest.raises(ConfigError, match="compresses at ratio 2, 4, 8; got 16"):
        make_views(["latents"], [16], model)
    for label in ("latents x", "other", "latents 4.5x"):
        with pytest.raises(ConfigError, match="label of a view"):
            View.of_label(label)


def test_an_error_names_the_row_that_caused_it(model, tmp_path):
    config = replace(model.config, decoder=replace(model.config.decoder, max_positions=200))
    short = LanguageModel(config, model.params, model.tokenizer)
    # The first is longer in characters, the second in tokens.
    texts = ["e" * 300, "\u4e16\u754c" * 100]
    questions = [ask("mixed", n, [Passage(text), "?"]) for n, text in enumerate(texts)]
    sizes = [len(model.tokenizer.encode(text)) for text in texts]
    assert sizes[1] > 200, sizes
    with pytest.raises(TextError, match="mixed, row 1, text: prompt and answer"):
        answerer(short, tmp_path / "a.jsonl").answer(questions, View("text"))


def test_a_completion_of_nothing_begins_a_text(model, tmp_path):
    question = ask("empty", 0, [Passage("gone")], is_chat=False, max_tokens=3)
    (reply,) = answerer(model, tmp_path / "a.jsonl").answer([question], View("nothing"))
    assert reply.positions == 1


def test_the_agents_answer_keeps_the_bounds_of_its_question(model, monkeypatch, tmp_path):
    asked = {}

    class Scripted:
        def __init__(self, model, source, **settings):
            asked.update(settings)

        def ask(self, question):
            asked["question"] = question
            rounds = [SimpleNamespace(positions=9)]
            return SimpleNamespace(text="one two. three four five six", rounds=rounds)

    monkeypatch.setattr(answering, "Agent", Scripted)
    messages = [
        {"role": "system", "content": ["Be brief."]},
        {"role": "user", "content": ["Read:", Passage(PROSE[:200]), " Why?"]},
        {"role": "assistant", "content": ["It is"]},
    ]
    question = Question("q", 0, messages, max_tokens=50, sampling=Sampling(stop=(".",)))
    (reply,) = answerer(model, tmp_path / "a.jsonl").answer([question], View("expand", 4))
    assert reply == Reply("one two", 9)
    assert asked["question"] == "Be brief.\n\nRead: Why?" and asked["sampling"].stop == ()
    cut = replace(question, max_tokens=2, sampling=GREEDY)
    (reply,) = answerer(model, tmp_path / "a.jsonl").answer([cut], View("expand", 4))
    assert len(model.tokenizer.encode(reply.text)) == 2
    assert "one two. three four five six".startswith(reply.text)
