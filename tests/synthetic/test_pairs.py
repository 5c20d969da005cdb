"""Documents of random pairs and the questions about them."""

import json
import random
from pathlib import Path

from lclm_jax.data.rows.raw_examples import example_text
from lclm_jax.data.shards import split_of
from lclm_jax.data.synthetic import pairs

WORDS = ["amber", "kestrel", "stone", "river", "paper", "window", "cedar", "harbour"]


def read(text: str) -> list[tuple[str, ...]]:
    """The pairs of a document, or of text without a title."""
    return [tuple(pair.split()) for pair in text.rpartition(":")[2].rstrip(",").split(",")]


def test_frequent_words_are_plain_words_the_most_frequent_first():
    texts = ["stone river stone", "River stone river of the Stone 42 stones_ abcdefghi"]
    assert pairs.frequent_words(texts, 5) == ["stone", "river"]
    assert pairs.frequent_words(texts, 1) == ["stone"]


def test_pairs_have_keys_of_their_own():
    rng = random.Random(0)
    for _ in range(100):
        drawn = pairs.draw_pairs(WORDS, rng, 2, 8)
        assert 2 <= len(drawn) <= 8
        assert len({key for key, _ in drawn}) == len(drawn)
        assert {word for pair in drawn for word in pair} <= set(WORDS)


def test_a_document_spells_its_pairs():
    assert pairs.spell([("amber", "kestrel"), ("stone", "river")]) == " amber kestrel, stone river,"
    documents = [row["text"] for row in pairs.pair_documents(WORDS, 50, 4, 6, seed=1)]
    assert len(set(documents)) == 50
    assert {len(text.partition(":")[0].split()) for text in documents} == {
        0,
        1,
        2,
        3,
    }  # words of a title
    assert all(4 <= len(read(text)) <= 6 for text in documents)
    assert documents == [row["text"] for row in pairs.pair_documents(WORDS, 50, 4, 6, seed=1)]


def test_a_lookup_asks_for_values_of_the_document():
    for row in pairs.lookups(WORDS, 20, 3, 8, questions=4, seed=2):
        first = row["messages"][0]["content"]
        table = dict(read(first[0]["context"]))
        keys = [message["content"][-1]["text"] for message in row["messages"][::2]]
        values = [message["content"] for message in row["messages"][1::2]]
        assert len(keys) == len(values) == min(4, len(table)) and len(set(keys)) == len(keys)
        for key, value in zip(keys, values, strict=True):
            assert value == f" {table[key[1:-1]]}"
        assert all(
            list(part) == ["text"]
            for message in row["messages"][2::2]
            for part in message["content"]
        )


def test_a_reordering_holds_the_same_pairs():
    rows = list(pairs.reorderings(WORDS, 20, 5, 8, seed=3))
    for row in rows:
        (context, asked), answer = row["messages"][0]["content"], row["messages"][1]["content"]
        assert asked == {"text": pairs.REORDER}
        assert sorted(read(context["context"])) == sorted(read(answer))
    assert any(
        row["messages"][0]["content"][0]["context"] != row["messages"][1]["content"] for row in rows
    )


def test_jumbles_are_words_of_the_texts():
    for row in pairs.jumbles(["a (b) c.", "d"], 10, 6, seed=4):
        assert len(row["text"].split()) == 6
        assert set(row["text"].split()) <= {"a", "(b)", "c.", "d"}


def test_documents_held_out_are_the_same_without_the_others(monkeypatch, tmp_path):
    monkeypatch.setattr(pairs, "COUNTS", {"": 300, "_short": 400})
    monkeypatch.setattr(pairs, "TOKENIZER_DOCUMENTS", 50)
    words = " ".join(
        start + end
        for start in ("am", "ke", "sto", "ri", "pa")
        for end in ("ber", "strel", "ne", "ver", "dow")
    )
    modules = [(f"module{i}.py", f'"""Module {i} {words}"""') for i in range(300)]
    monkeypatch.setattr(pairs.corpus, "standard_library", lambda: modules)
    everything, held_out = (
        pairs.write_corpus(tmp_path / "all", 400),
        pairs.write_held_out(tmp_path / "held"),
    )
    for name in pairs.NAMES:
        rows, kept = (
            [
                json.loads(line)
                for line in Path(files[name][0]).read_text(encoding="utf-8").splitlines()
            ]
            for files in (everything, held_out)
        )
        assert kept == [
            row for row in rows if split_of(row.get("split_group") or example_text(row)) == "held"
        ]
        assert 0 < len(kept) < len(rows) / 10, name
    assert (tmp_path / "all" / "tokenizer").exists() and not (
        tmp_path / "held" / "tokenizer"
    ).exists()
