"""The corpus of the demo: real text as input files, and the tokenizer trained on it."""

import dataclasses

import pytest

from lclm_jax.data.shards import split_of
from lclm_jax.data.synthetic import corpus

pytestmark = pytest.mark.newest


def test_one_document_in_fifty_is_held_out_always_the_same():
    splits = [split_of(f"document {i}") for i in range(20_000)]
    assert set(splits) == {"train", "held"}
    assert 300 < splits.count("held") < 500
    assert splits[:200] == [split_of(f"document {i}") for i in range(200)]
    assert [i for i in range(300) if splits[i] == "held"] == [25, 189, 215, 217]
    assert split_of("a lone surrogate \ud800") in ("train", "held")


LONG = (
    "A docstring of more than eighty characters, "
    "so that it is long enough to be a passage of its own."
)


def test_docstrings_of_a_module():
    module = (
        f'"""{LONG} 1"""\nclass A:\n    """{LONG} 2"""\n'
        '    def f(self):\n        """Too short."""\n    def g(self): pass\n'
    )
    assert corpus.docstrings(module) == [f"{LONG} 1", f"{LONG} 2"]
    assert corpus.docstrings(f'def f():\n    """{LONG}\n\n    More.\n    """\n') == [
        f"{LONG}\n\nMore."
    ]
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
        sentence = question.removeprefix(" Who ").removesuffix("? Reply only with a name.")
        assert f"{assistant['content']} {sentence}." in facts
    assert tasks == list(corpus.needle_tasks(5))


def test_a_trained_tokenizer_has_the_size_asked_for(tokenizer):
    assert tokenizer.vocab_size == 512
    assert tokenizer.encode("import os").max() < 512 - 6


def test_a_trained_tokenizer_ends_with_its_control_tokens_in_order():
    tokenizer = corpus.train_tokenizer(
        ["def add(a, b):\n    return a + b\n" * 50, "likes pears " * 50], vocab=300
    )
    names = [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|memory_start|>",
        "<|memory_end|>",
        "<|memory|>",
    ]
    assert [tokenizer.id(name) for name in names] == list(
        range(tokenizer.vocab_size - 6, tokenizer.vocab_size)
    )
    assert list(tokenizer.control) == names
    assert dataclasses.astuple(tokenizer.memory) == (
        *range(tokenizer.vocab_size - 3, tokenizer.vocab_size),
        tokenizer.vocab_size - 6,
    )
    assert tokenizer.encode("zß7").max() < tokenizer.vocab_size - 6, (
        "a text of unseen letters is bytes"
    )
