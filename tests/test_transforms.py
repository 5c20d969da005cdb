"""The three streams: what becomes context, what is trained, and in which proportions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import ids

from lclm_jax.config import DataConfig
from lclm_jax.data.spans import (
    Context,
    Plain,
)
from lclm_jax.data.transforms import (
    REQUESTS,
    crop,
    follow,
    interleave,
    reconstruct,
    segment_lengths,
    wrap_prompt,
)


def test_interleaved_documents_start_wrapped_end_plain_and_lose_nothing(tokenizer):
    rng, data = np.random.default_rng(0), DataConfig(passage=(300, 5000))
    raw = {"tokens": np.arange(6000, dtype=np.int32)}
    for _ in range(100):
        record = interleave(raw, rng, data, tokenizer)
        assert [type(span) for span in record] == [Context, Plain] * (len(record) // 2)
        assert all(span.trained for span in record[1::2])
        tokens = np.concatenate([span.tokens for span in record])
        assert 300 <= len(tokens) <= 5000
        assert (np.diff(tokens) == 1).all(), "the segments joined are one passage of the document"
        assert sum(len(span.tokens) for span in record[1::2]) == len(tokens) // 2


@pytest.mark.parametrize(("length", "trainable"), [(1001, 500), (16382, 8191), (16387, 8192), (30000, 8192)])
def test_long_documents_have_a_fixed_number_of_trainable_tokens(tokenizer, length, trainable):
    data = DataConfig(passage=(length, length))
    record = interleave({"tokens": np.zeros(length, np.int32)}, np.random.default_rng(0), data, tokenizer)
    assert sum(len(span.tokens) for span in record if isinstance(span, Plain)) == trainable


@pytest.mark.parametrize(
    ("lengths", "pairs"),
    [
        ((256, 2047), {1}),
        ((2048, 4095), {1, 2}),
        ((4096, 8191), {2, 3, 4}),
        ((8192, 16383), {4, 5, 6}),
        ((16385, 60000), {4, 5, 6, 7, 8}),
    ],
)
def test_segments_are_cut_as_the_paper_says(lengths, pairs):
    rng, seen = np.random.default_rng(1), set()
    for _ in range(1000):
        length = int(rng.integers(lengths[0], lengths[1] + 1))
        trainable = 8192 if length > 16384 else length // 2
        wrapped, plain = segment_lengths(length, trainable, rng, shortest=128)
        assert (sum(wrapped), sum(plain)) == (length - trainable, trainable)
        assert len(wrapped) == len(plain)
        assert min(wrapped + plain) >= 128
        seen.add(len(plain))
        if len(plain) == 1:
            continue
        assert 0.3 * sum(wrapped) - 1 <= wrapped[0] <= 0.4 * sum(wrapped) + 1
        assert 0.4 * sum(plain) - 1 <= plain[-1] <= 0.5 * sum(plain) + 1
        for others in (wrapped[1:], plain[:-1]):
            assert max(others) - 1 <= 1.2 / 0.8 * (min(others) + 1)
    assert seen == pairs


@pytest.mark.parametrize(
    ("length", "pairs"), [(2047, {1}), (2048, {1, 2}), (4095, {1, 2}), (4096, {2, 3, 4}), (8191, {2, 3, 4}), (8192, {4, 5, 6})]
)
def test_the_number_of_segments_changes_at_the_bounds(length, pairs):
    rng = np.random.default_rng(6)
    assert {len(segment_lengths(length, length // 2, rng, 128)[0]) for _ in range(100)} == pairs


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 40000), st.integers(1, 3000), st.integers(0, 2**32))
def test_no_segment_is_too_short_when_the_document_is_long_enough(length, shortest, seed):
    trainable = 8192 if length > 16384 else length // 2
    wrapped, plain = segment_lengths(length, trainable, np.random.default_rng(seed), shortest)
    assert (sum(wrapped), sum(plain)) == (length - trainable, trainable)
    assert len(wrapped) == len(plain)
    if trainable >= shortest:
        assert min(wrapped + plain) >= shortest


@pytest.mark.parametrize("kind", ["text", "code"])
def test_reconstruction_asks_for_the_very_tokens_of_its_context(tokenizer, kind):
    data, rng = DataConfig(reconstruction=(5, 40)), np.random.default_rng(2)
    raw = {"tokens": tokenizer.encode("import os\n\nprint(os.name)  # " * 6), "kind": kind}
    asked = set()
    for _ in range(60):
        record = reconstruct(raw, rng, data, tokenizer)
        (context,) = (span for span in record if isinstance(span, Context))
        (answer,) = (span for span in record if isinstance(span, Plain) and span.trained)
        assert 5 <= len(context.tokens) <= 40
        assert answer.tokens.tolist() == [*context.tokens.tolist(), tokenizer.id("<|im_end|>")]
        asked.add(tokenizer.decode(record[2].tokens).removesuffix("<|im_end|>\n<|im_start|>assistant\n").strip())
        assert tokenizer.decode(record[0].tokens) == "<|im_start|>user\n"
    assert asked == set(REQUESTS[kind])


def test_following_keeps_the_parts_it_is_given(tokenizer):
    content = [{"text": "Read "}, {"context": "Ben likes figs."}, {"text": " Who?"}]
    raw = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "Ben"}]}
    record = follow(raw, np.random.default_rng(0), DataConfig(), tokenizer)
    texts = [(type(span), tokenizer.decode(span.tokens)) for span in record]
    assert texts == [
        (Plain, "<|im_start|>user\nRead "),
        (Context, "Ben likes figs."),
        (Plain, " Who?<|im_end|>\n<|im_start|>assistant\n"),
        (Plain, "Ben<|im_end|>"),
        (Plain, "\n"),
    ]
    assert [span.trained for span in record if isinstance(span, Plain)] == [False, False, True, False]


def test_following_wraps_what_is_not_the_assistants(tokenizer):
    long = "Ada likes pears, Ben likes figs. " * 20
    messages = [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": long},
        {"role": "assistant", "content": "Ada likes pears."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes."},
    ]
    rendered = "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages)
    rng, whole = np.random.default_rng(3), 0
    for _ in range(100):
        record = follow({"messages": messages}, rng, DataConfig(), tokenizer)
        assert tokenizer.decode(np.concatenate([span.tokens for span in record])) == rendered
        trained = [tokenizer.decode(span.tokens) for span in record if isinstance(span, Plain) and span.trained]
        assert trained == ["Ada likes pears.<|im_end|>", "Yes.<|im_end|>"]
        contexts = [tokenizer.decode(span.tokens) for span in record if isinstance(span, Context)]
        assert (contexts[0], contexts[-1]) == ("Answer in one word.", "Sure?")
        assert all(text in long for text in contexts[1:-1])
        whole += long in contexts
    assert 30 < whole < 70


@pytest.mark.parametrize(("lengths", "most"), [((1, 31), 1), ((32, 199), 1), ((200, 599), 2), ((600, 3000), 3)])
def test_wrapped_prompts_keep_their_tokens_and_cover_most_of_them(lengths, most):
    rng, regions, whole, total = np.random.default_rng(4), set(), 0, 800
    for _ in range(total):
        tokens = np.arange(rng.integers(lengths[0], lengths[1] + 1), dtype=np.int32)
        parts = wrap_prompt(tokens, rng)
        contexts = [part.tokens for part in parts if isinstance(part, Context)]
        assert np.concatenate([getattr(part, "tokens", part) for part in parts]).tolist() == tokens.tolist()
        assert all(len(getattr(part, "tokens", part)) for part in parts)
        assert sum(map(len, contexts)) >= 0.7 * len(tokens)
        regions.add(len(contexts))
        whole += len(parts) == 1
    assert regions == set(range(1, most + 1))
    assert whole == total if lengths[1] < 32 else 0.42 * total < whole < 0.65 * total


@pytest.mark.parametrize(("length", "most"), [(31, 1), (32, 1), (199, 1), (200, 2), (599, 2), (600, 3)])
def test_the_number_of_regions_changes_at_the_bounds(length, most):
    rng, tokens = np.random.default_rng(7), np.arange(length, dtype=np.int32)
    prompts = [wrap_prompt(tokens, rng) for _ in range(200)]
    assert max(sum(isinstance(part, Context) for part in parts) for parts in prompts) == most
    assert any(len(parts) > 1 for parts in prompts) is (length >= 32)


def test_there_are_fewer_pairs_where_more_would_be_too_short():
    rng = np.random.default_rng(8)
    for _ in range(50):
        wrapped, plain = segment_lengths(20000, 8192, rng, shortest=3000)
        assert len(wrapped) == len(plain) == 2
        assert min(wrapped + plain) >= 3000


def test_an_empty_prompt_has_no_parts():
    assert wrap_prompt(ids(), np.random.default_rng(0)) == []


def test_crops_keep_to_their_bounds():
    rng, tokens = np.random.default_rng(5), np.arange(50, dtype=np.int64)
    crops = [crop(tokens, rng, (3, 6)) for _ in range(500)]
    assert {len(part) for part in crops} == {3, 4, 5, 6}
    assert all((np.diff(part) == 1).all() and part.dtype == np.int32 for part in crops)
    assert (min(part[0] for part in crops), max(part[-1] for part in crops)) == (0, 49)
    assert crop(tokens[:4], rng, (10, 20)).tolist() == [0, 1, 2, 3]
    assert crop(tokens[:0], rng, (10, 20)).tolist() == []
