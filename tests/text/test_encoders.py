"""Tokenizers of every kind against transformers.

Text has no control tokens, marked pieces have those that transformers finds, and added words
are part of the text.
"""

import json
import os
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, normalizers, pre_tokenizers, trainers

from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.data.text.tokenizer_json import CONTROL_TOKEN_FLAGS

EXAMPLES = int(os.environ.get("LCLM_FUZZ", "50"))
FLAGS = {
    "<unk>": {},
    "<s>": {},
    "</s>": {},
    "[INST]": {"lstrip": True, "rstrip": True},
    "<|im_end|>": {},
    "<|user|>": {"rstrip": True},
    "<think>": {"lstrip": True, "special": False},
    "<|norm|>": {"normalized": True, "special": False},
    "<|end of text|>": {},
}
CONTROL = list(FLAGS)
WORDS = {"CAPEX": {}, "    ": {}, "Zoë": {"normalized": True}, "\n\n": {}, " x": {"lstrip": True}}
ALONE = {
    **CONTROL_TOKEN_FLAGS,
    "content": "<|one|>",
    "single_word": True,
}  # where letters stand beside it, text
PROSE = (
    "The quick brown fox jumps over the lazy dog. Ada likes pears; Ben likes figs! "
    "Naïve Grüße 東京 <s> a </s> b [INST] <|im_end|> im_end s|> "
) * 20


def with_added(fields, control=CONTROL, words=False):
    """The definition with control tokens, under the ids they have in the vocabulary, and words."""
    vocab = fields["model"]["vocab"]
    known = vocab if isinstance(vocab, dict) else {p: i for i, (p, _) in enumerate(vocab)}
    tokens = [{**CONTROL_TOKEN_FLAGS, **FLAGS[name], "content": name} for name in control]
    tokens += [
        {**CONTROL_TOKEN_FLAGS, **WORDS[name], "content": name, "special": False}
        for name in WORDS
        if words
    ]
    new = [token["content"] for token in tokens if token["content"] not in known]
    ids = known | {name: max(known.values()) + 1 + i for i, name in enumerate(new)}
    return {**fields, "added_tokens": [{**token, "id": ids[token["content"]]} for token in tokens]}


def bpe(splitter, normalizer=None, known=False, words=False, alphabet=(), alone=False, **model):
    """A BPE, with `known` control tokens in its vocabulary."""
    fast = FastTokenizer(models.BPE(unk_token="<unk>" if known else None))
    if normalizer:
        fast.normalizer = normalizer
    fast.pre_tokenizer = splitter
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=list(alphabet),
        special_tokens=CONTROL if known else [],
        show_progress=False,
    )
    fast.train_from_iterator([PROSE], trainer)
    fields = json.loads(fast.to_str())
    fields["model"] |= model
    fields = with_added(fields, words=words)
    if alone:
        last = max(token["id"] for token in fields["added_tokens"])
        fields["added_tokens"].append({**ALONE, "id": last + 1})
    return fields


def byte_level(prefix=False, **options):
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    return bpe(splitter, alphabet=pre_tokenizers.ByteLevel.alphabet(), **options)


def llama_2(prefix=True, words=False):
    """A SentencePiece BPE as Llama 2's: no splitter, and bytes for what the vocabulary lacks."""
    fields = bpe(pre_tokenizers.WhitespaceSplit(), known=True, alphabet=["▁"])
    vocab = fields["model"]["vocab"]
    vocab |= {f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)}
    fields["model"] |= {"byte_fallback": True, "fuse_unk": True}
    steps = [{"type": "Prepend", "prepend": "▁"}] if prefix else []
    steps += [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    normalizer = {"type": "Sequence", "normalizers": steps}
    return with_added({**fields, "normalizer": normalizer, "pre_tokenizer": None}, words=words)


def unigram(scheme, words=False, split=True, unknown="<unk>"):
    """A SentencePiece Unigram that has the control tokens among its pieces."""
    fast = FastTokenizer(models.Unigram())
    fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=CONTROL, unk_token=unknown, show_progress=False
    )
    fast.train_from_iterator([PROSE], trainer)
    return with_added(json.loads(fast.to_str()), words=words)


def word_level(splitter, words=False):
    vocab = {word: i for i, word in enumerate([*CONTROL, "the", "fox", "Ada", "likes", "."])}
    fields = json.loads(FastTokenizer(models.WordLevel(vocab, "<unk>")).to_str())
    return with_added({**fields, "pre_tokenizer": {"type": splitter}}, words=words)


def word_piece(words=False):
    vocab = [*CONTROL, *("a", "##a", "##d", "f", "##o", "##x", "l", "##ikes", "##s", "<", "s", ">")]
    model = models.WordPiece({word: i for i, word in enumerate(vocab)}, unk_token="<unk>")
    fast = FastTokenizer(model)
    fast.normalizer = normalizers.BertNormalizer()
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return with_added(json.loads(fast.to_str()), words=words)


SPACES = pre_tokenizers.WhitespaceSplit()
KINDS = {
    "byte-level": lambda: byte_level(alone=True),
    "byte-level, words": lambda: byte_level(words=True, alone=True),
    "byte-level, composed": lambda: byte_level(normalizer=normalizers.NFC(), words=True),
    "byte-level, a space first": lambda: byte_level(prefix=True, words=True),
    "byte-level, lower case": lambda: byte_level(normalizer=normalizers.Lowercase(), words=True),
    "whole words first": lambda: bpe(SPACES, known=True, ignore_merges=True),
    "llama 2": llama_2,
    "llama 2, words": lambda: llama_2(words=True),
    "gemma": lambda: llama_2(prefix=False, words=True),
    "unigram, first": lambda: unigram("first"),
    "unigram, always": lambda: unigram("always", words=True),
    "unigram, never": lambda: unigram("never"),
    "unigram, unsplit": lambda: unigram("first", split=False),
    "unigram, </s> for unknown": lambda: unigram("always", unknown="</s>"),
    "words at spaces": lambda: word_level("WhitespaceSplit"),
    "words": lambda: word_level("Whitespace", words=True),
    "word pieces": word_piece,
    "word pieces, words": lambda: word_piece(words=True),
}
OTHERS = ["the", "fox", "Ada", "likes", ".", "a", "<", "|", "s>", "im_end", "|>", "<|im_", "THE"]
PLAIN_BITS = st.sampled_from([*WORDS, " ", "  ", "\n", "é", "▁", *OTHERS])
BITS = st.one_of(st.sampled_from([*CONTROL, "<|one|>", "<S>"]), PLAIN_BITS)
TEXTS = st.lists(st.one_of(BITS, BITS, st.text(max_size=3)), max_size=12).map("".join)
PLAIN = (
    st.lists(st.one_of(PLAIN_BITS, st.text(max_size=3)), max_size=12)
    .map("".join)
    .filter(lambda text: not any(name in text.lower() for name in (*CONTROL, "<|one|>")))
)
PIECES = st.lists(st.tuples(TEXTS, st.booleans()), max_size=5)


@cache
def tokenizer_of(kind) -> Tokenizer:
    return Tokenizer(json.dumps(KINDS[kind]()))


def fuzz(strategy):
    return lambda test: settings(max_examples=EXAMPLES, deadline=None)(given(strategy)(test))


def control_of(tokenizer, tokens) -> set[int]:
    return set(tokens.tolist()) & set(tokenizer.control.values())


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", KINDS)
def test_plain_text_has_no_control_token(kind):
    tokenizer = tokenizer_of(kind)

    @fuzz(TEXTS)
    def holds(text):
        tokens, _ = tokenizer.encode_with_offsets(text)
        assert not control_of(tokenizer, tokens)
        assert tokenizer.encode(text).tolist() == tokens.tolist()
        assert np.concatenate(list(tokenizer.encode_stream(text, 1))).tolist() == tokens.tolist()

    holds()
    for name in tokenizer.control:
        for text in (name, f" {name} ", f"a{name}b", name * 3, f"he said {name}.", name.upper()):
            assert not control_of(tokenizer, tokenizer.encode(text))


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", KINDS)
def test_text_without_control_tokens_has_the_tokens_of_the_library(kind):
    tokenizer = tokenizer_of(kind)
    library = FastTokenizer.from_str(tokenizer.definition)
    dropped = tokenizer._text.dropped

    @fuzz(PLAIN)
    def holds(text):
        expected = library.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text).tolist() == [i for i in expected if i != dropped]

    holds()


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", KINDS)
def test_stand_ins_are_found_where_control_tokens_are(kind):
    """The second tokenizer of marked text gives what the whole one gives, offsets included."""
    tokenizer = tokenizer_of(kind)
    library = FastTokenizer.from_str(tokenizer.definition)
    dropped = tokenizer._text.dropped

    @fuzz(TEXTS)
    def holds(text):
        expected = library.encode(text, add_special_tokens=False)
        tokens, offsets = tokenizer._marked.encode(text, np.ones(len(text), bool))
        both = [(int(i), tuple(o)) for i, o in zip(tokens, offsets.tolist(), strict=True)]
        wanted = list(zip(expected.ids, expected.offsets, strict=True))
        assert [x for x in both if x[0] != dropped] == [x for x in wanted if x[0] != dropped]

    holds()


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", KINDS)
def test_control_tokens_lie_in_marked_characters(kind):
    tokenizer = tokenizer_of(kind)

    @fuzz(PIECES)
    def holds(pieces):
        text = "".join(piece for piece, _ in pieces)
        marked = [mark for piece, mark in pieces for _ in piece]
        tokens, offsets = tokenizer.encode_with_control(pieces)
        assert len(tokens) == len(offsets)
        for token, (start, stop) in zip(tokens.tolist(), offsets.tolist(), strict=True):
            if token in tokenizer.control.values():
                places = [i for i in range(start, stop) if not text[i].isspace()]
                assert all(marked[i] for i in places)

    holds()
