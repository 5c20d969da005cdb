"""Text of an answer while its tokens arrive."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models

from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.inference.text_stream import TextStream

TEXTS = st.text(alphabet=st.sampled_from("aé\n .,日🙂e\u0301\ufffd<"), max_size=12)


def stream(tokenizer, tokens, stop=()):
    """The pieces of the text of tokens, and the stream that gave them."""
    text = TextStream(tokenizer, stop)
    return [*map(text.add, tokens), text.finish()], text


@settings(deadline=None)
@given(
    tokens=st.lists(st.integers(0, 511), max_size=30),
    text=TEXTS,
    stop=st.lists(st.sampled_from(["a", "aé", "\n.", "日🙂", ". ", "🙂"]), max_size=2),
)
def test_pieces_join_to_the_text_up_to_the_stop(tokenizer, tokens, text, stop):
    """Any tokens, most of which are no whole characters, and those of a text."""
    for ids in (tokens, tokenizer.encode(text).tolist() if text else [], [*tokens, 97, 195]):
        whole = tokenizer.decode(ids, control=False)
        ends = [(whole.find(s) + len(s), whole.find(s)) for s in stop if s in whole]
        expected = whole[: min(ends)[1]] if ends else whole
        pieces, result = stream(tokenizer, ids, stop)
        assert "".join(pieces) == expected
        assert result.stopped == bool(ends)


@pytest.fixture(scope="module")
def parts_of_characters(tokenizer):
    """Tokens whose bytes are no character by themselves, some that are, and control tokens."""
    parts = [number for number in range(512) if tokenizer.decode([number]) == "\ufffd"]
    assert len(parts) > 100
    words = [number for letter in "é日\ufffda " for number in tokenizer.encode(letter).tolist()]
    return [*parts, *words * 9, *tokenizer.control.values()]


@settings(deadline=None)
@given(data=st.data())
def test_bytes_without_a_character_are_streamed_without_a_difference(
    tokenizer, parts_of_characters, data
):
    """More of them than are withheld."""
    few = data.draw(st.lists(st.sampled_from(parts_of_characters), min_size=1, max_size=6))
    tokens = data.draw(st.lists(st.sampled_from(few), min_size=40, max_size=150))
    pieces, text = stream(tokenizer, tokens)
    assert "".join(pieces) == tokenizer.decode(tokens, control=False)
    assert text.count == len(tokens)


class CountingTokenizer:
    """A tokenizer that counts the tokens it decodes."""

    def __init__(self, tokenizer):
        self.tokenizer, self.decoded = tokenizer, 0

    def decode(self, tokens, control=True):
        self.decoded += len(tokens)
        return self.tokenizer.decode(tokens, control)


@pytest.mark.parametrize("kind", ["continuation", "beginning", "replacement", "control"])
def test_the_work_per_token_is_bounded(tokenizer, kind):
    """Bytes that never form a character, U+FFFD itself, or control tokens amid a character."""
    first, second, third = tokenizer.encode("日").tolist()
    slot = tokenizer.memory.slot
    tokens = {
        "continuation": [third] * 2000,
        "beginning": [first, second] * 1000,
        "replacement": tokenizer.encode("\ufffd" * 700).tolist(),
        "control": [first, *[slot] * 2000, second, third],
    }[kind]
    counting = CountingTokenizer(tokenizer)
    pieces, _ = stream(counting, tokens)
    assert "".join(pieces) == tokenizer.decode(tokens, control=False)
    assert counting.decoded < 150 * len(tokens)
    if kind != "control":
        assert max(map(len, pieces)) < 50


def test_a_character_is_given_whole(tokenizer):
    tokens = tokenizer.encode("é🙂").tolist()
    assert len(tokens) > 2
    pieces, _ = stream(tokenizer, tokens)
    assert [piece for piece in pieces if piece] == ["é", "🙂"]


def test_the_beginning_of_a_stop_string_is_withheld(tokenizer):
    tokens = [number for letter in "no\nUs\nUser:x" for number in tokenizer.encode(letter).tolist()]
    pieces, text = stream(tokenizer, tokens, ["\nUser:"])
    assert pieces[:6] == ["n", "o", "", "", "", "\nUs"] and "".join(pieces) == "no\nUs"
    assert text.stopped and text.count == len(tokens) - 1


WORDS = ["<unk>", "▁a", "b", "▁", "##c", ".", "▁don", "'", "t", "?"]
BYTES = [f"<0x{number:02X}>" for number in range(256)]
DECODERS = {
    "sentencepiece": decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    ),
    "metaspace": decoders.Metaspace(),
    "wordpiece": decoders.WordPiece(),
}


@pytest.mark.parametrize("kind", DECODERS)
@settings(deadline=None, max_examples=50)
@given(tokens=st.lists(st.integers(0, len(WORDS) - 1) | st.integers(0, 265), max_size=12))
def test_other_decoders_are_streamed_without_a_difference(kind, tokens):
    vocab = {word: number for number, word in enumerate([*WORDS, *BYTES])}
    fast = FastTokenizer(models.WordLevel(vocab, "<unk>"))
    fast.decoder = DECODERS[kind]
    tokenizer = Tokenizer(fast.to_str())
    pieces, _ = stream(tokenizer, tokens)
    whole = tokenizer.decode(tokens, control=False)
    # Where bytes are no characters, byte fallback gives up those around them, too.
    assert "".join(pieces) == whole or ("\ufffd" in whole and "\ufffd" in "".join(pieces))
