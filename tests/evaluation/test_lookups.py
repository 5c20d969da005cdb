"""Generated lists of pairs: the answer stands in the list once, and lengths are as asked for."""

import pytest

from lclm_jax.config import ConfigError
from lclm_jax.evaluation.tasks import TASKS, TaskSettings

LENGTHS = (40, 120)


def generate(tokenizer, **settings):
    settings = {"lengths": LENGTHS, "limit": 8, **settings}
    return TASKS["lookups"](TaskSettings(tokenizer=tokenizer, **settings))


def test_the_value_follows_its_key_and_lists_are_as_long_as_they_can_be(tokenizer):
    questions = generate(tokenizer)
    assert [q.task for q in questions] == ["lookups@40"] * 8 + ["lookups@120"] * 8
    for question in questions:
        (passage,) = question.passages
        key = question.contents[0][-1].strip(" ?")
        tokens = len(tokenizer.encode(passage.text))
        assert f" {key} {question.references[0]}," in passage.text
        assert passage.text.count(",") == question.tags["pairs"]
        assert question.tags["length"] - 30 < tokens <= question.tags["length"]
        keys = [pair.split()[0] for pair in passage.text.partition(":")[2].split(",") if pair]
        assert len(set(keys)) == len(keys)


def test_lists_depend_on_the_seed_and_nothing_else(tokenizer):
    first, again = generate(tokenizer), generate(tokenizer)
    assert [q.identity for q in first] == [q.identity for q in again]
    fewer = generate(tokenizer, lengths=(120,), limit=3)
    assert [q.identity for q in fewer] == [q.identity for q in first[8:11]]
    others = generate(tokenizer, seed=1)
    assert not {q.identity for q in first} & {q.identity for q in others}


def test_lengths_without_a_pair_or_beyond_the_words_are_errors(tokenizer):
    for length in (2, 100_000):
        with pytest.raises(ConfigError, match=f"pairs, got {length} tokens"):
            generate(tokenizer, lengths=(length,))
    with pytest.raises(ConfigError, match="expected a tokenizer"):
        generate(None)
