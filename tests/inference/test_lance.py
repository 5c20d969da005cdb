"""The index in LanceDB: what is added, dropped and refused."""

import sys

import numpy as np
import pytest

import lclm_jax
from lclm_jax.config import ConfigError
from lclm_jax.errors import UserError
from lclm_jax.files.directories import DirectoryError, locked
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.inference.retrieval import LanceRetriever, RetrievalError, retrieved_parts
from lclm_jax.inference.store import Store
from lclm_jax.model.params import init_params
from tests.support.prose import PROSE
from tests.support.retrieval import embed, write_pairs

pytest.importorskip("lancedb")

QUOTED = "Ada's \"work\"'; --"  # a name that must not become a part of a query
NOTES = {
    "fruit": "Ada likes pears. Ben likes figs.",
    QUOTED: "The bridge was built by engineers in winter.",
    "long": PROSE[:2500],
}


@pytest.fixture
def store(tmp_path, model):
    store = Store(tmp_path / "store", model)
    for name, text in NOTES.items():
        store.add_text(name, text)
    return store


@pytest.fixture
def calls():
    """The texts that were embedded, a list for each call."""
    return []


@pytest.fixture
def retriever(tmp_path, store, calls):
    def counted(texts):
        calls.append(list(texts))
        return embed(texts)

    retriever = LanceRetriever(tmp_path / "index", store, counted)
    assert retriever.update() == (3, 0)
    return retriever


def documents(retriever, question, count=10):
    return [passage.document for passage in retriever.retrieve(question, count)]


def test_the_best_passage_comes_first(retriever, store):
    first, *others = retriever.retrieve("Who likes figs?", 2)
    assert (first.document, first.start, first.stop) == ("fruit", 0, len(NOTES["fruit"]))
    assert 0 < first.score <= 1 and all(first.score >= other.score for other in others)
    assert documents(retriever, "Which engineers built the bridge?")[0] == QUOTED
    exact = PROSE[1000:1400]
    best = retriever.retrieve(exact, 1)[0]
    assert best.document == "long" and best.stop - best.start <= 1000
    assert len(retrieved_parts(store, retriever.retrieve(exact, 5))) >= 6


def test_only_what_is_new_is_embedded_and_what_is_gone_is_dropped(retriever, store, calls):
    calls.clear()
    assert retriever.update() == (0, 0) and not calls
    store.add_text("new", "Cy likes plums.")
    store.remove(QUOTED)
    assert retriever.update() == (1, 1)
    assert calls == [["Cy likes plums."]]
    assert documents(retriever, "Who likes plums?")[0] == "new"
    assert QUOTED not in documents(retriever, "Which engineers built the bridge?")


def test_a_document_that_changed_is_left_out_until_it_is_indexed(retriever, store):
    store.add_text("fruit", "Dee likes limes.")
    assert "fruit" not in documents(retriever, "Who likes figs?")
    store.remove("long")
    assert "long" not in documents(retriever, PROSE[:300])
    assert retriever.update() == (1, 2)
    assert documents(retriever, "Who likes limes?")[0] == "fruit"


def test_documents_with_the_same_text_are_dropped_one_by_one(retriever, store):
    store.add_text("copy", NOTES["fruit"])
    assert retriever.update() == (1, 0)
    store.remove("fruit")
    assert retriever.update() == (0, 1)
    assert documents(retriever, "Who likes figs?")[0] == "copy"


def test_an_index_is_read_again_and_by_others_at_once(retriever, store, calls):
    other = LanceRetriever(retriever.directory, store, embed)
    store.add_text("new", "Cy likes plums.")
    assert retriever.update() == (1, 0)
    assert documents(other, "Who likes plums?")[0] == "new" and other.update() == (0, 0)


def test_an_interrupted_update_keeps_whole_documents(retriever, store):
    store.add_text("a", "Cy likes plums.")
    store.add_text("b", "poison")

    def failing(texts):
        if "poison" in texts:
            raise RuntimeError("no connection")
        return embed(texts)

    with pytest.raises(RuntimeError, match="no connection"):
        LanceRetriever(retriever.directory, store, failing).update()
    assert documents(retriever, "Who likes plums?")[0] == "a"
    assert retriever.update() == (1, 0)


def test_documents_of_other_models_are_not_indexed(
    retriever, store, model_config, tokenizer, one_device
):
    other = LanguageModel(model_config, init_params(model_config, one_device, seed=1), tokenizer)
    Store(store.directory, other).add_text("theirs", "Cy likes plums.")
    assert retriever.update() == (0, 0)


def test_questions_may_have_an_embedding_of_their_own(tmp_path, store):
    asked = []

    def embed_question(texts):
        asked.extend(texts)
        return embed([NOTES[QUOTED]])

    retriever = LanceRetriever(tmp_path / "index", store, embed, embed_question, characters=100)
    retriever.update()
    assert documents(retriever, "Who?", 1) == [QUOTED] and asked == ["Who?"]
    assert {passage.stop - passage.start <= 100 for passage in retriever.retrieve("", 50)} == {True}


def test_one_process_updates_at_a_time(retriever, store):
    store.add_text("new", "Cy likes plums.")
    with locked(retriever.directory), pytest.raises(DirectoryError, match="index"):
        retriever.update()


@pytest.mark.parametrize(
    "vectors", [np.zeros((2, 4)), np.zeros(4), np.full((1, 4), np.nan), np.zeros((1, 4, 1))]
)
def test_an_embedding_gives_a_vector_for_each_text(tmp_path, store, vectors):
    with pytest.raises(RetrievalError, match="from embed"):
        LanceRetriever(tmp_path / "index", store, lambda texts: vectors)


def test_another_embedding_needs_another_directory(retriever, store):
    with pytest.raises(RetrievalError, match=r"width 4 .* name another directory"):
        LanceRetriever(retriever.directory, store, lambda texts: np.ones((len(texts), 4)))
    with pytest.raises(ConfigError, match="the directory of an index must be a path"):
        LanceRetriever("gs://bucket/index", store, embed)
    with pytest.raises(ConfigError, match="count must be at least 1, got 0"):
        retriever.retrieve("Who?", 0)


def test_a_missing_library_is_named(tmp_path, store, monkeypatch):
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(UserError, match=r"needs lancedb: pip install 'lclm_jax\[retrieval\]'"):
        LanceRetriever(tmp_path / "index", store, embed)


def test_from_documents_to_an_answer(lookup, tmp_path):
    store = Store(tmp_path / "store", lclm_jax.load(lookup))
    write_pairs(store)
    retriever = LanceRetriever(tmp_path / "index", store, embed)
    retriever.update()
    parts = retrieved_parts(store, retriever.retrieve("version?", 1), plain=0)
    assert store.model.generate([*parts, " version?"]).strip() == "integer"
