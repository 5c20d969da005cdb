"""Sources on disk, and the demo's corpus."""

import ast
import dataclasses
import json
from dataclasses import replace

import numpy as np
import pytest
from records import ids

from lclm_jax.config import ConfigError
from lclm_jax.data import corpus
from lclm_jax.data.sources import open_source, pack_raw, read_source, source_path, split_of, unpack_raw, write_source
from lclm_jax.data.streams import stage_batches, stage_examples


def test_a_source_gives_back_what_was_written(tmp_path):
    path = source_path(tmp_path, "mine", "train")
    raws = [{"tokens": ids(1, 2, 70000), "kind": "text"}, {"messages": [{"role": "user", "content": "é"}]}]
    assert write_source(path, raws) == 2
    first, second = read_source(tmp_path, "mine", "train")
    assert (first["tokens"].tolist(), first["kind"]) == ([1, 2, 70000], "text")
    assert second == raws[1]
    assert unpack_raw(pack_raw({"tokens": np.array([5], np.int64)}))["tokens"].tolist() == [5]


def test_a_source_that_breaks_off_is_not_left_behind(tmp_path):
    def broken():
        yield {"kind": "text"}
        raise OSError("the disk is gone")

    path = source_path(tmp_path, "mine", "train")
    with pytest.raises(OSError, match="disk"):
        write_source(path, broken())
    assert not path.exists()


def test_a_missing_source_is_named(config, tokenizer, tmp_path):
    expected = tmp_path / "docs.train.arrayrecord"
    with pytest.raises(FileNotFoundError, match=f"{expected}: no such source.*data.directory"):
        open_source(tmp_path, "docs")
    elsewhere = replace(config, data=replace(config.data, directory=str(tmp_path)))
    with pytest.raises(FileNotFoundError, match=str(expected)):
        stage_batches(elsewhere, elsewhere.stages[0], tokenizer)


def test_an_empty_source_is_refused(config, tokenizer, tmp_path):
    write_source(source_path(tmp_path, "docs", "train"), [])
    empty = replace(config, data=replace(config.data, directory=str(tmp_path)))
    with pytest.raises(ConfigError, match="source docs has no train examples; leave stream reconstruction/docs out"):
        stage_examples(empty, empty.stages[0], tokenizer)


def test_one_document_in_fifty_is_held_out_always_the_same():
    splits = [split_of(f"document {i}") for i in range(20_000)]
    assert set(splits) == {"train", "held"}
    assert 300 < splits.count("held") < 500
    assert splits[:200] == [split_of(f"document {i}") for i in range(200)]
    assert [i for i in range(300) if splits[i] == "held"] == [25, 189, 215, 217]
    assert split_of("a lone surrogate \ud800") in ("train", "held")


LONG = "A docstring of more than eighty characters, so that it is long enough to be a passage of its own."


def test_docstrings_of_a_module():
    module = f'"""{LONG} 1"""\nclass A:\n    """{LONG} 2"""\n    def f(self):\n        """Too short."""\n    def g(self): pass\n'
    assert corpus.docstrings(module) == [f"{LONG} 1", f"{LONG} 2"]
    assert corpus.docstrings(f'def f():\n    """{LONG}\n\n    More.\n    """\n') == [f"{LONG}\n\nMore."]
    assert corpus.docstrings(f'async def f():\n    """{LONG}"""\n') == [LONG]
    assert corpus.docstrings("def broken(:") == []
    assert corpus.docstrings("") == []


def test_needle_tasks_put_the_facts_in_the_context_and_the_question_after_it():
    pytest.importorskip("reasoning_gym")
    tasks = list(corpus.needle_tasks(5))
    assert len(tasks) == 5
    for task in tasks:
        user, assistant = task["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        facts, question = user["content"][0]["context"], user["content"][1]["text"]
        assert question.startswith(" Who ") and question.endswith("? Reply only with a name.")
        assert "Who " not in facts and 2 <= facts.count(".") <= 6
        told = question.removeprefix(" Who ").removesuffix("? Reply only with a name.")
        assert f"{assistant['content']} {told}." in facts
    assert tasks == list(corpus.needle_tasks(5))


def test_a_trained_tokenizer_has_the_size_asked_for(tokenizer):
    assert tokenizer.size == 512
    assert tokenizer.encode("import os").max() < 512 - 6


def test_a_trained_tokenizer_ends_with_its_control_tokens_in_order():
    tokenizer = corpus.train_tokenizer(["def add(a, b):\n    return a + b\n" * 50, "likes pears " * 50], vocab=300)
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|memory_start|>", "<|memory_end|>", "<|memory|>"]
    assert [tokenizer.id(name) for name in names] == list(range(tokenizer.size - 6, tokenizer.size))
    assert list(tokenizer.control) == names
    assert dataclasses.astuple(tokenizer.memory) == (*range(tokenizer.size - 3, tokenizer.size), tokenizer.size - 6)
    assert tokenizer.encode("zß7").max() < tokenizer.size - 6, "a text of unseen letters is bytes"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A corpus of invented modules and real tasks, prepared as the demo prepares its own."""
    pytest.importorskip("reasoning_gym")

    def module(i: int) -> str:
        functions = (f'def f{j}():\n    """{LONG} It is number {i}.{j}."""\n' for j in range(5))
        return "import os\n" + "".join(functions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "standard_library", lambda: (module(i) for i in range(120)))
        return corpus.prepare(tmp_path_factory.mktemp("prepared"), vocab=400, tasks=150)


def contents(directory, source, split):
    from lclm_jax.data.tokens import Tokenizer

    tokenizer = Tokenizer.load(directory / "tokenizer")
    raws = read_source(directory, source, split)
    return [tokenizer.decode(raw["tokens"]) if "tokens" in raw else corpus.chat_text(raw) for raw in raws]


def facts_of(directory, split):
    raws = read_source(directory, "tasks", split)
    return {raw["messages"][0]["content"][0]["context"] for raw in raws}


def test_prepare_writes_every_source_in_two_splits_and_tells_how_many(prepared):
    manifest = json.loads((prepared / "manifest.json").read_text())
    expected = {"code": 120, "docs": 600, "haystacks": 150, "tasks": 150}
    for source, total in expected.items():
        train, held = contents(prepared, source, "train"), contents(prepared, source, "held")
        assert (len(train), len(held)) == (manifest["examples"][f"{source}.train"], manifest["examples"][f"{source}.held"])
        assert len(train) + len(held) == total and held
        assert not set(train) & set(held)
    assert all(ast.parse(text) for text in contents(prepared, "code", "train"))


def test_prepare_does_nothing_twice(prepared, monkeypatch):
    def never():
        raise AssertionError("the corpus is there already")

    monkeypatch.setattr(corpus, "standard_library", never)
    assert corpus.prepare(prepared, vocab=400, tasks=150) == prepared
    with pytest.raises(AssertionError, match="there already"):
        corpus.prepare(prepared, vocab=401, tasks=150)


def test_no_held_out_facts_are_in_any_training_source(prepared):
    held = facts_of(prepared, "held")
    assert not held & set(contents(prepared, "haystacks", "train"))
    assert not held & facts_of(prepared, "train")


def test_no_held_out_docstring_is_in_a_training_module(prepared):
    code = "\n".join(contents(prepared, "code", "train"))
    assert not [text for text in contents(prepared, "docs", "held") if text in code]
