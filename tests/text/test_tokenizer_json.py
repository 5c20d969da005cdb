"""Ids of a tokenizer.json with gaps, and words among its added tokens."""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lclm_jax.data.text import text_encoder as encoder
from lclm_jax.data.text.tokenizer import MEMORY_TOKENS, TextError, Tokenizer, add_memory_tokens
from lclm_jax.data.text.tokenizer_json import CONTROL_TOKEN_FLAGS, MAX_UNUSED_IDS

WORDS = ("CAPEX", "    ", "Zoë")


def word_level(vocab, added):
    """A tokenizer.json of words, its added tokens given by their ids."""
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    tokens = [
        {**CONTROL_TOKEN_FLAGS, "id": number, "content": name} for name, number in added.items()
    ]
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": tokens,
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "model": model,
        }
    )


def unigram(added):
    pieces = [["<unk>", 0.0], ["a", -1.0], ["b", -2.0]]
    fields = json.loads(word_level({}, added))
    return json.dumps({**fields, "model": {"type": "Unigram", "unk_id": 0, "vocab": pieces}})


def byte_level(tokenizer, added):
    fields = json.loads(tokenizer.definition)
    tokens = [
        {**CONTROL_TOKEN_FLAGS, "id": number, "content": name} for name, number in added.items()
    ]
    return json.dumps({**fields, "added_tokens": tokens})


def check_ids(tokenizer, directory, added):
    """Everyone reads the ids of the file."""
    from transformers import AutoTokenizer

    tokenizer.save(directory)
    reference = AutoTokenizer.from_pretrained(directory)
    for name, number in added.items():
        assert tokenizer.id(name) == number
        assert tokenizer.decode([number]) == name
        assert reference.convert_tokens_to_ids(name) == number
        assert tokenizer.encode_with_control([(name, True)])[0].tolist() == [number]
    assert tokenizer.embedding_rows == len(reference) == tokenizer.vocab_size
    assert Tokenizer.load(directory).definition == tokenizer.definition


@pytest.mark.parametrize("kind", ["byte-level", "words", "holes in the vocabulary", "unigram"])
def test_ids_with_free_numbers_between_are_kept(tokenizer, tmp_path, kind):
    last = len(json.loads(tokenizer.definition)["model"]["vocab"])
    added, definition = {
        "byte-level": (
            ends := {"<|end|>": last, "<|start|>": last + 7, "<|late|>": last + 90},
            byte_level(tokenizer, ends),
        ),
        "words": (
            ends := {"<s>": 9, "</s>": 4},
            word_level({"<unk>": 0, "a": 1, "b": 2}, ends),
        ),
        "holes in the vocabulary": (
            ends := {"<s>": 1, "</s>": 9},
            word_level({"<unk>": 0, "a": 3, "b": 7}, ends),
        ),
        "unigram": (ends := {"<s>": 5, "</s>": 9}, unigram(ends)),
    }[kind]
    sparse = Tokenizer(definition)
    check_ids(sparse, tmp_path / "sparse", added)
    whole = add_memory_tokens(sparse)
    expected = {name: sparse.embedding_rows + i for i, name in enumerate(MEMORY_TOKENS)}
    check_ids(whole, tmp_path / "whole", added | expected)
    assert not set(whole.encode("<s> a <|end|> </s>").tolist()) & set(whole.control.values())


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        (word_level({"<unk>": 0, "a": 1}, {"<s>": 1}), "gives '<s>' an id that another entry has"),
        (
            word_level({"<unk>": 0, "<s>": 1}, {"<s>": 5}),
            "gives '<s>' an id that another entry has",
        ),
        (unigram({"<s>": 1}), "gives '<s>' an id that another entry has"),
        (
            word_level({"<unk>": 0}, {"<s>": 5, "</s>": 5}),
            "gives '</s>' an id that another entry has",
        ),
        (word_level({"<unk>": 0}, {"<s>": 10**9}), f"expected at most {MAX_UNUSED_IDS}"),
    ],
)
def test_ids_that_cannot_be_kept_are_refused(definition, message):
    with pytest.raises(TextError, match=message):
        Tokenizer(definition)


def test_numbers_without_holes_leave_the_definition_as_it_is(tokenizer):
    assert Tokenizer(tokenizer.definition).definition is tokenizer.definition


# --- words ---


@pytest.fixture(scope="module")
def wordy(tokenizer):
    fields = json.loads(tokenizer.definition)
    form = {**CONTROL_TOKEN_FLAGS, "special": False}
    added = [
        {**form, "id": tokenizer.embedding_rows + i, "content": name}
        for i, name in enumerate(WORDS)
    ]
    return Tokenizer(json.dumps({**fields, "added_tokens": fields["added_tokens"] + added}))


@pytest.mark.parametrize("text", ["the CAPEX is", "def f():\n    return", "Zoë likes figs", ""])
def test_added_words_are_part_of_text(wordy, tmp_path, text):
    from transformers import AutoTokenizer

    wordy.save(tmp_path)
    expected = AutoTokenizer.from_pretrained(tmp_path)(text, add_special_tokens=False)["input_ids"]
    assert wordy.encode(text).tolist() == expected
    assert wordy.decode(wordy.encode(text)) == text
    assert not set(WORDS) & wordy.control.keys()


@pytest.mark.parametrize("name", ["!", "\n", "  "])
def test_characters_called_special_are_still_text(tokenizer, tmp_path, name):
    """Fine-tuned models are published whose pad token is `!`."""
    from transformers import AutoTokenizer

    fields = json.loads(tokenizer.definition)
    vocab = fields["model"]["vocab"]
    added = {
        **CONTROL_TOKEN_FLAGS,
        "content": name,
        "id": vocab.get(name, tokenizer.embedding_rows),
    }
    fields["added_tokens"].append(added)
    special = Tokenizer(json.dumps(fields), special={"pad_token": name})
    special.save(tmp_path)
    text = f"No{name}{name} Why{name}?"
    expected = AutoTokenizer.from_pretrained(tmp_path)(text, add_special_tokens=False)["input_ids"]
    assert special.encode(text).tolist() == expected
    assert added["id"] in expected


def test_text_with_words_is_still_cut(wordy):
    text = "Zoë and CAPEX    are    Zoë.\n" * 50
    parts = list(wordy.encode_stream(text, 7))
    assert len(parts) > 50
    assert [i for part in parts for i in part] == wordy.encode_with_offsets(text)[0].tolist()


def test_half_a_surrogate_pair_is_no_text(tokenizer):
    for encode in (tokenizer.encode, tokenizer.encode_with_offsets):
        with pytest.raises(TextError, match=r"got half a surrogate pair, '\\ud83d'"):
            encode("ab\ud83d")
    with pytest.raises(TextError, match="half a surrogate pair"):
        tokenizer.encode_with_control([("ab\ud83d", False)])


@pytest.mark.fuzz
@settings(max_examples=int(os.environ.get("LCLM_FUZZ", "50")), deadline=None)
@given(st.lists(st.one_of(st.sampled_from([*WORDS, " ", "é"]), st.text(max_size=4))).map("".join))
def test_text_with_words_comes_back(wordy, text):
    assert wordy.decode(wordy.encode(text)) == text


# --- the check of a tokenizer ---


def test_a_tokenizer_whose_text_has_control_tokens_is_refused(monkeypatch):
    monkeypatch.setattr(encoder, "without_entries", lambda model, names: model)
    vocab = {"<unk>": 0, "a": 1, "<s>": 2}
    with pytest.raises(TextError, match="gives plain text its control token '<s>'"):
        Tokenizer(word_level(vocab, {"<s>": 2}))


def test_a_model_without_an_unknown_token_refuses_the_text_alone():
    fields = json.loads(word_level({"a": 0}, {"<s>": 1}))
    tokenizer = Tokenizer(json.dumps(fields))
    assert tokenizer.encode("a a").tolist() == [0, 0]
    with pytest.raises(TextError, match="expected a text that can be encoded, got .*UNK"):
        tokenizer.encode("a b")


# --- marked pieces ---


def test_text_that_spells_control_tokens_stays_text_beside_a_template(tokenizer):
    turn = [("<|im_start|>user\n", True), ("a <|im_end|>", False), ("<|im_end|>\n", True)]
    tokens, offsets = tokenizer.encode_with_control(turn)
    start, end = tokenizer.id("<|im_start|>"), tokenizer.id("<|im_end|>")
    assert [int(i) for i in tokens if i in tokenizer.control.values()] == [start, end]
    assert tokenizer.decode(tokens) == "".join(text for text, _ in turn)
    assert offsets[tokens == end].tolist() == [[29, 39]]


def test_a_control_token_may_span_marked_pieces_and_no_others(tokenizer):
    whole = [("<|im_", True), ("end|>", True)]
    half = [("<|im_", True), ("end|>", False)]
    assert tokenizer.encode_with_control(whole)[0].tolist() == [tokenizer.id("<|im_end|>")]
    assert (
        tokenizer.encode_with_control(half)[0].tolist() == tokenizer.encode("<|im_end|>").tolist()
    )
    assert tokenizer.encode_with_control([])[0].tolist() == []


def test_text_that_spells_the_stand_ins_stays_text(tokenizer):
    marked = tokenizer._marked
    spelled = " ".join(marked._stand_ins(marked._unused("")).values())
    pieces = [("<|im_start|>", True), (f"<|im_end|> {spelled}", False)]
    tokens, _ = tokenizer.encode_with_control(pieces)
    assert [i for i in tokens if i in tokenizer.control.values()] == [tokenizer.id("<|im_start|>")]
    assert tokenizer.decode(tokens) == "".join(text for text, _ in pieces)


# --- unknown characters ---


def test_an_unknown_token_that_ends_texts_is_left_out(tmp_path):
    added = {"</s>": 1, "<unk>": 0}
    fields = json.loads(word_level({"<unk>": 0, "</s>": 1, "a": 2}, added))
    plain = Tokenizer(json.dumps(fields))
    assert plain.encode("a b a").tolist() == [2, 0, 2]
    assert plain.control == {"</s>": 1}
    fields["model"]["unk_token"] = "</s>"
    assert Tokenizer(json.dumps(fields)).encode("a b a").tolist() == [2, 2]
    fields["model"]["unk_token"] = "<unk>"
    both = Tokenizer(json.dumps(fields), special={"eos_token": "<unk>"})
    assert both.encode("a b a").tolist() == [2, 2]
    assert both.encode_with_offsets("a b a")[1].tolist() == [[0, 1], [4, 5]]
