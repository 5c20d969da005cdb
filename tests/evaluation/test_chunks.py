"""Chunks of passages: cut by tokens, ranked for a question, and read as text beside latents."""

from dataclasses import replace

import pytest

from lclm_jax.config import ConfigError
from lclm_jax.evaluation.answering import Answerer
from lclm_jax.evaluation.answers_file import AnswersFile
from lclm_jax.evaluation.chunks import choose_chunks, rank_texts, split_chunks
from lclm_jax.evaluation.questions import Passage, ask
from lclm_jax.evaluation.rendering import render_question
from lclm_jax.evaluation.views import View
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.inference.latents import Latents
from tests.support.prose import PROSE

TOKENS = 32
VIEWS = [
    View("latents", 4, TOKENS, 2),
    View("nothing", None, TOKENS, 2),
    View("first", 4, TOKENS, 2),
]


def question(text=PROSE[:900], asked=" What is it?", **fields):
    return ask("prose", 0, ["Read.\n", Passage(text), asked], max_tokens=4, **fields)


@pytest.mark.parametrize("tokens", [1, 7, 32, 10_000])
def test_chunks_cover_a_text_without_gaps(tokens, tokenizer):
    chunks = split_chunks(PROSE, tokens, tokenizer)
    assert [start for start, _ in chunks] == [0, *(stop for _, stop in chunks[:-1])]
    assert chunks[-1][1] == len(PROSE) and all(start < stop for start, stop in chunks)
    counts = [len(tokenizer.encode(PROSE[start:stop])) for start, stop in chunks]
    assert tokens < 7 or all(abs(count - tokens) <= 3 for count in counts[:-1])
    assert split_chunks("", tokens, tokenizer) == []


def test_a_text_that_is_read_in_parts_is_cut_alike(tokenizer):
    text = PROSE * 40
    _, offsets = tokenizer.encode_with_offsets(text)
    starts = [start for start, _ in split_chunks(text, 100, tokenizer)]
    assert starts == sorted({0, *offsets[::100, 0].tolist()})


def test_rare_words_in_common_decide():
    texts = ["the the the the", "the lease", "the lease ends in the spring", "nothing"]
    assert rank_texts("When does the lease end? ends", texts)[0] == 2
    assert rank_texts("Which lease?", texts)[:2] == [1, 2], (
        "a shorter text of equal words is better"
    )
    assert rank_texts("unknown", texts) == [0, 1, 2, 3]
    assert rank_texts("租约何时", ["其他文字", "租约到期"])[0] == 1
    assert rank_texts("anything", []) == []


def test_the_chunks_of_all_passages_compete(tokenizer):
    parts = [Passage(PROSE[:400]), Passage("A zebra sleeps."), Passage(""), " Where is the zebra?"]
    chosen = choose_chunks(ask("several", 0, parts), 1, TOKENS, tokenizer)
    assert chosen == [[], [(0, 15)], []]


def test_chunks_are_text_and_the_rest_is_latents(model):
    asked = question(asked=f" {PROSE[400:440]}?")
    record = render_question(asked, VIEWS[0], model, lambda text: model.compress(text, 4))
    latents = [part for part in record if isinstance(part, Latents)]
    assert 1 <= len(latents) <= 3
    whole = model.compress(PROSE[:900], 4)
    assert sum(map(len, latents)) < len(whole)
    (chunks,) = choose_chunks(asked, 2, TOKENS, model.tokenizer)
    assert any(start <= 420 < stop for start, stop in chunks), "the question quotes this one"
    texts = "".join(part.text or "" for part in latents)
    assert all(PROSE[start:stop] not in texts for start, stop in chunks)


def test_views_take_the_positions_that_they_should(model, tmp_path):
    answerer = Answerer(model, AnswersFile(tmp_path / "answers.jsonl"))
    positions = {
        view.label: answerer.answer([question()], view)[0].positions
        for view in [*VIEWS, View("text"), View("latents", 4), View("first", 4), View("nothing")]
    }
    beside, chunks = positions["latents 4x + 2x32"], positions["nothing + 2x32"]
    assert positions["nothing"] + 2 * TOKENS <= chunks <= positions["nothing"] + 2 * TOKENS + 8
    assert positions["latents 4x"] < beside < positions["text"]
    assert 0 <= beside - positions["first 4x + 2x32"] <= 10, "only tags and splits differ"


def test_a_passage_that_is_all_chunks_has_no_latents(model):
    record = render_question(
        question("Short."), VIEWS[0], model, lambda text: model.compress(text, 4)
    )
    assert not any(isinstance(part, Latents) for part in record)


def test_labels_name_chunks():
    views = [*VIEWS, View("expand", 16, 256), View("expand", 16), View("text")]
    labels = [
        "latents 4x + 2x32",
        "nothing + 2x32",
        "first 4x + 2x32",
        "expand 16x of 256",
        "expand 16x",
    ]
    assert [view.label for view in views] == [*labels, "text"]
    assert [View.of_label(view.label) for view in views] == views
    for label in ("latents 4x + 2", "latents 4x of x", "latents 4x +2x32"):
        with pytest.raises(ConfigError, match="label of a view"):
            View.of_label(label)


def test_prompts_that_do_not_fit_are_skipped_where_that_is_asked(model, tmp_path):
    config = replace(model.config, decoder=replace(model.config.decoder, max_positions=128))
    short = LanguageModel(config, model.params, model.tokenizer)
    questions = [question(), replace(question("Short."), number=1)]
    file = tmp_path / "answers.jsonl"
    answerer = Answerer(short, AnswersFile(file), skip_long=True)
    long, fitting = answerer.answer(questions, View("text"))
    assert (long.text, long.fits) == ("", False) and long.positions > 128
    assert fitting.fits and fitting.positions < 128
    again = Answerer(short, AnswersFile(file), skip_long=True).answer(questions, View("text"))
    assert again == [long, fitting]
    (reply,) = answerer.answer([replace(question(), max_tokens=120)], View("expand", 4))
    assert (reply.text, reply.fits) == ("", False)
