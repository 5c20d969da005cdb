"""The three streams: their contexts, trained tokens and proportions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lclm_jax.config import CompressionConfig, ConfigError, DataConfig
from lclm_jax.data.recipe import transforms
from lclm_jax.data.recipe.transforms import (
    TRANSFORMS,
    crop,
    draw_ratios,
    interleaved_record,
    leave_plain,
    read_requests,
    reasoning_record,
    reconstruction_record,
    segment_lengths,
    sft_record,
    split_prompt,
)
from lclm_jax.data.records import Context, Plain, Role, Section
from lclm_jax.data.records.sections import flatten_sections, split_sections
from lclm_jax.data.rows.raw_examples import tokenize_example
from tests.support.records import ids

pytestmark = pytest.mark.newest


def document(length):
    return [Section(np.arange(length, dtype=np.int32), Role.DOCUMENT)]


def lengths_of(record):
    return [(type(span), len(span.tokens), getattr(span, "trained", None)) for span in record]


def test_interleaved_documents_start_wrapped_end_plain_and_lose_nothing():
    rng, data = np.random.default_rng(0), DataConfig(crop_length=(300, 5000))
    for _ in range(100):
        record = interleaved_record(document(6000), rng, data)
        assert [type(span) for span in record] == [Context, Plain] * (len(record) // 2)
        assert all(span.trained for span in record[1::2])
        tokens = np.concatenate([span.tokens for span in record])
        assert 300 <= len(tokens) <= 5000
        assert (np.diff(tokens) == 1).all(), "the segments joined are one passage of the document"
        assert sum(len(span.tokens) for span in record[1::2]) == len(tokens) // 2


@pytest.mark.parametrize(
    ("length", "trainable"), [(1001, 500), (16382, 8191), (16387, 8192), (30000, 8192)]
)
def test_long_documents_have_a_fixed_number_of_trainable_tokens(length, trainable):
    record = interleaved_record(document(length), np.random.default_rng(0), DataConfig())
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
    rng, counts = np.random.default_rng(1), set()
    for _ in range(1000):
        length = int(rng.integers(lengths[0], lengths[1] + 1))
        trainable = 8192 if length > 16384 else length // 2
        wrapped, plain = segment_lengths(length, trainable, rng, shortest=128)
        assert (sum(wrapped), sum(plain)) == (length - trainable, trainable)
        assert len(wrapped) == len(plain)
        assert min(wrapped + plain) >= 128
        counts.add(len(plain))
        if len(plain) == 1:
            continue
        assert 0.3 * sum(wrapped) - 1 <= wrapped[0] <= 0.4 * sum(wrapped) + 1
        assert 0.4 * sum(plain) - 1 <= plain[-1] <= 0.5 * sum(plain) + 1
        for others in (wrapped[1:], plain[:-1]):
            assert max(others) - 1 <= 1.2 / 0.8 * (min(others) + 1)
    assert counts == pairs


@pytest.mark.parametrize(
    ("length", "pairs"),
    [
        (2047, {1}),
        (2048, {1, 2}),
        (4095, {1, 2}),
        (4096, {2, 3, 4}),
        (8191, {2, 3, 4}),
        (8192, {4, 5, 6}),
    ],
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


@pytest.mark.parametrize("kind", ["text", "code", "long", "math", "latex"])
def test_reconstruction_asks_for_the_very_tokens_of_its_context(tokenizer, kind):
    data, rng = DataConfig(reconstruction_length=(5, 40)), np.random.default_rng(2)
    example = tokenize_example({"text": "import os\n\nprint(os.name)  # " * 6}, tokenizer)
    asked = set()
    for _ in range(1200):
        record = reconstruction_record(example, rng, data, tokenizer, kind)
        (context,) = (span for span in record if isinstance(span, Context))
        answer = np.concatenate(
            [span.tokens for span in record if isinstance(span, Plain) and span.trained]
        )
        assert 5 <= len(context.tokens) <= 40
        assert answer.tolist() == [*context.tokens.tolist(), tokenizer.id("<|im_end|>")]
        asked.add(
            tokenizer.decode(record[2].tokens)
            .removesuffix("<|im_end|>\n<|im_start|>assistant\n")
            .strip()
        )
        assert tokenizer.decode(record[0].tokens) == "<|im_start|>user\n"
    assert asked == set(read_requests(kind)) and len(asked) == 100


def test_following_keeps_the_parts_it_is_given(tokenizer):
    content = [{"text": "Read "}, {"context": "Ben likes figs."}, {"text": " Who?"}]
    raw = {
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "Ben"}]
    }
    record = sft_record(tokenize_example(raw, tokenizer), np.random.default_rng(0))
    texts = [(type(span), tokenizer.decode(span.tokens)) for span in record]
    assert texts == [
        (Plain, "<|im_start|>user\nRead "),
        (Context, "Ben likes figs."),
        (Plain, " Who?<|im_end|>\n<|im_start|>assistant\n"),
        (Plain, "Ben<|im_end|>"),
        (Plain, "\n"),
    ]
    assert [span.trained for span in record if isinstance(span, Plain)] == [
        False,
        False,
        True,
        False,
    ]


def test_following_wraps_what_is_not_the_assistants(tokenizer):
    long = "Ada likes pears, Ben likes figs. " * 20
    messages = [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": long},
        {"role": "assistant", "content": "Ada likes pears."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes."},
    ]
    rendered = "".join(
        f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages
    )
    rng, whole = np.random.default_rng(3), 0
    example = tokenize_example({"messages": messages}, tokenizer)
    for _ in range(100):
        record = sft_record(example, rng)
        assert tokenizer.decode(np.concatenate([span.tokens for span in record])) == rendered
        trained = [
            tokenizer.decode(span.tokens)
            for span in record
            if isinstance(span, Plain) and span.trained
        ]
        assert trained == ["Ada likes pears.<|im_end|>", "Yes.<|im_end|>"]
        contexts = [tokenizer.decode(span.tokens) for span in record if isinstance(span, Context)]
        assert (contexts[0], contexts[-1]) == ("Answer in one word.", "Sure?")
        assert all(text in long for text in contexts[1:-1])
        whole += long in contexts
    assert 30 < whole < 70


@pytest.mark.parametrize(
    ("lengths", "most"), [((1, 31), 1), ((32, 199), 1), ((200, 599), 2), ((600, 3000), 3)]
)
def test_wrapped_prompts_keep_their_tokens_and_cover_most_of_them(lengths, most):
    rng, regions, whole, total = np.random.default_rng(4), set(), 0, 800
    for _ in range(total):
        tokens = np.arange(rng.integers(lengths[0], lengths[1] + 1), dtype=np.int32)
        parts = split_prompt(tokens, rng)
        contexts = [part.tokens for part in parts if isinstance(part, Context)]
        assert np.concatenate([part.tokens for part in parts]).tolist() == tokens.tolist()
        assert all(len(part.tokens) for part in parts)
        assert sum(map(len, contexts)) >= 0.7 * len(tokens)
        regions.add(len(contexts))
        whole += len(parts) == 1
    assert regions == set(range(1, most + 1))
    assert whole == total if lengths[1] < 32 else 0.42 * total < whole < 0.65 * total


@pytest.mark.parametrize(
    ("length", "most"), [(31, 1), (32, 1), (199, 1), (200, 2), (599, 2), (600, 3)]
)
def test_the_number_of_regions_changes_at_the_bounds(length, most):
    rng, tokens = np.random.default_rng(7), np.arange(length, dtype=np.int32)
    prompts = [split_prompt(tokens, rng) for _ in range(200)]
    assert max(sum(isinstance(part, Context) for part in parts) for parts in prompts) == most
    assert any(len(parts) > 1 for parts in prompts) is (length >= 32)


def evenly_spread(values, low, high, rounding):
    """Tell whether a sample looks uniform between two bounds, by the counts of its quarters."""
    values = np.array(values)
    assert low - rounding <= values.min() and values.max() <= high + rounding
    counts, _ = np.histogram(np.clip(values, low, high), bins=4, range=(low, high))
    assert (
        len(values) > 1000
        and (abs(counts - len(values) / 4) < 6 * np.sqrt(len(values) * 3 / 16)).all()
    ), counts
    return True


def test_shares_of_thousands_of_documents_fill_the_papers_ranges():
    rng, data = np.random.default_rng(10), DataConfig()
    pairs, first, last, others = {length: [] for length in (3000, 6000, 12000, 40000)}, [], [], []
    for length in pairs:
        for _ in range(1500):
            record = interleaved_record([Section(range(length), Role.DOCUMENT)], rng, data)
            sizes = np.array([len(span.tokens) for span in record])
            wrapped, plain = sizes[::2], sizes[1::2]
            pairs[length].append(len(wrapped))
            assert plain.sum() == (8192 if length > 16384 else length // 2) and sizes.min() >= 128
            if len(wrapped) > 1:
                first.append(wrapped[0] / wrapped.sum())
                last.append(plain[-1] / plain.sum())
            if len(wrapped) == 4 and length == 12000:
                others += [*(wrapped[1:] / wrapped[1:].mean()), *(plain[:-1] / plain[:-1].mean())]
    assert evenly_spread(first, 0.30, 0.40, 0.001) and evenly_spread(last, 0.40, 0.50, 0.001)
    assert 0.799 < min(others) < 0.82 and 1.18 < max(others) < 1.201, (
        "each 20 % off an even share at most"
    )
    for length, (least, most) in {3000: (1, 2), 6000: (2, 4), 12000: (4, 6), 40000: (4, 8)}.items():
        counts = np.bincount(pairs[length])[least:]
        assert (
            len(counts) == most - least + 1 and (abs(counts / 1500 - 1 / len(counts)) < 0.06).all()
        )


@pytest.mark.parametrize("length", [190, 550, 4000])
def test_wrapped_regions_cover_what_the_paper_says_with_gaps_between(length):
    rng, cover, numbers = np.random.default_rng(11), [], []
    for _ in range(5000):
        parts = split_prompt(range(length), rng)
        numbers.append(sum(isinstance(part, Context) for part in parts))
        covered = sum(len(part.tokens) for part in parts if isinstance(part, Context))
        gaps = [len(part.tokens) for part in parts[1:-1] if isinstance(part, Plain)]
        if len(parts) > 1:
            cover.append(covered / length)
        if length - covered >= -(-length // 20) * (numbers[-1] - 1):
            assert len(gaps) == numbers[-1] - 1 and min(gaps, default=length) >= length / 20
    most = 1 if length < 200 else 2 if length < 600 else 3
    assert evenly_spread(cover, 0.8, 1.0, 1 / length)
    several = np.bincount(numbers)[2:] / len(numbers)
    assert len(several) == most - 1 and (abs(several - 0.5 / most) < 0.04).all()


def test_segments_after_the_first_are_even_up_to_the_jitter(monkeypatch):
    monkeypatch.setattr(
        "lclm_jax.data.recipe.transforms._jitter", lambda parts, rng: np.array([0.8, 1.2])
    )
    assert transforms._split_lengths(1000, 3, 0.4, None, 100) == [400, 240, 360]
    # What would be too short takes from the other.
    assert transforms._split_lengths(1000, 3, 0.4, None, 290) == [400, 290, 310]
    assert transforms._split_lengths(1000, 3, 0.01, None, 200)[0] == 200
    assert transforms._split_lengths(1000, 3, 0.99, None, 200) == [600, 200, 200]
    assert transforms._split_lengths(7, 1, 0.4, None, 100) == [7]


def test_jitter_is_drawn_within_a_fifth_and_keeps_the_sum():
    x, y = np.random.default_rng(3).uniform(0.8, 1.2, 2)
    expected = [2 * x / (x + y), 2 * y / (x + y)]
    assert np.allclose(transforms._jitter(2, np.random.default_rng(3)), expected)
    rng = np.random.default_rng(4)
    for parts in (1, 3, 7):
        factors = np.array([transforms._jitter(parts, rng) for _ in range(200)])
        assert np.allclose(factors.sum(axis=1), parts) and np.all(abs(factors - 1) <= 0.2)


def test_there_are_fewer_pairs_where_more_would_be_too_short():
    rng = np.random.default_rng(8)
    for _ in range(50):
        wrapped, plain = segment_lengths(20000, 8192, rng, shortest=3000)
        assert len(wrapped) == len(plain) == 2
        assert min(wrapped + plain) >= 3000


def test_an_empty_prompt_has_no_parts():
    assert split_prompt(ids(), np.random.default_rng(0)) == []


def test_crops_keep_to_their_bounds():
    rng, tokens = np.random.default_rng(5), np.arange(50, dtype=np.int64)
    crops = [crop(tokens, rng, (3, 6)) for _ in range(500)]
    assert {len(part) for part in crops} == {3, 4, 5, 6}
    assert all((np.diff(part) == 1).all() and len(part) for part in crops)
    assert (min(part[0] for part in crops), max(part[-1] for part in crops)) == (0, 49)
    assert crop(tokens[:4], rng, (10, 20)).tolist() == [0, 1, 2, 3]
    assert crop(tokens[:0], rng, (10, 20)).tolist() == []
    assert crop(tokens, rng, None) is tokens


@pytest.mark.parametrize("length", [0, 100, 255])
def test_a_document_too_short_for_two_segments_gives_no_record(length):
    assert interleaved_record(document(length), np.random.default_rng(0), DataConfig()) == []
    assert len(interleaved_record(document(256), np.random.default_rng(0), DataConfig())) == 2


@pytest.mark.parametrize("kind", sorted(TRANSFORMS))
def test_ranges_are_cut_as_tokens_are(tokenizer, kind):
    text = {"text": "def f(a):\n    return a + 1\n" * 60}
    chat = {
        "messages": [
            {"role": "user", "content": "Why? " * 200},
            {"role": "assistant", "content": "Because. " * 300},
        ]
    }
    example = tokenize_example(
        text if kind in ("interleaved", "reconstruction") else chat, tokenizer
    )
    tokens, table = flatten_sections(example)
    for seed in range(30):
        data = DataConfig(min_segment_length=16)
        record = TRANSFORMS[kind](example, np.random.default_rng(seed), data, tokenizer, "code")
        other = TRANSFORMS[kind](
            split_sections(range(len(tokens)), table.tolist()),
            np.random.default_rng(seed),
            data,
            tokenizer,
            "code",
        )
        assert lengths_of(record) == lengths_of(other)


def test_half_of_the_analyses_are_compressed_and_what_follows_is_trained_on(tokenizer):
    content = [
        {"analysis": "It is long. " * 30, "before": "<think>", "after": "</think>"},
        {"text": "Ben"},
    ]
    raw = {
        "messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": content}]
    }
    example, rng, wrapped = tokenize_example(raw, tokenizer), np.random.default_rng(0), 0
    thought = next(section.tokens for section in example if section.role is Role.ANALYSIS)
    for _ in range(400):
        record = reasoning_record(example, rng)
        trained = np.concatenate(
            [span.tokens for span in record if isinstance(span, Plain) and span.trained]
        )
        compressed = any(isinstance(span, Context) and span.tokens is thought for span in record)
        wrapped += compressed
        expected = (
            "<think></think>Ben<|im_end|>"
            if compressed
            else f"<think>{'It is long. ' * 30}</think>Ben<|im_end|>"
        )
        assert tokenizer.decode(trained) == expected
    assert 160 < wrapped < 240


@pytest.mark.parametrize(
    ("length", "kept"), [(2000, 128), (400, 128), (129, 128), (128, None), (60, None)]
)
def test_without_markers_the_end_of_an_answer_stays_plain(length, kept):
    example = [
        Section(np.arange(9), Role.FIXED),
        Section(np.arange(length), Role.ANSWER),
        Section(np.arange(2), Role.FIXED),
    ]
    lengths = set()
    for seed in range(40):
        record = reasoning_record(example, np.random.default_rng(seed))
        (trained,) = (
            len(span.tokens) for span in record if isinstance(span, Plain) and span.trained
        )
        assert (
            trained + sum(len(span.tokens) for span in record if isinstance(span, Context))
            == length
        )
        lengths.add(trained)
        assert kept or not any(isinstance(span, Context) for span in record)
    assert lengths == {length, kept or length}


def test_only_what_the_assistant_writes_is_trained_on():
    """A context keeps the ratio that it asks for, in both kinds of stream."""
    roles = (Role.FIXED, Role.CONTEXT, Role.ANSWER, Role.DOCUMENT, Role.ANALYSIS)
    example = [Section(range(i, i + 2), role, 4) for i, role in enumerate(roles)]
    expected = [
        Plain(range(0, 2)),
        Context(range(1, 3), 4),
        Plain(range(2, 4), trained=True),
        Plain(range(3, 5)),
        Plain(range(4, 6), trained=True),
    ]
    assert sft_record(example, np.random.default_rng(0)) == expected
    whole = [reasoning_record(example[:4], np.random.default_rng(seed)) for seed in range(20)]
    assert all(record == expected[:4] for record in whole)
    unanswered = [reasoning_record(example[:2], np.random.default_rng(seed)) for seed in range(20)]
    assert all(record == expected[:2] for record in unanswered)


def test_the_last_of_several_answers_is_the_one_that_is_compressed():
    example = [Section(range(300), Role.ANSWER), Section(range(1000, 1200), Role.ANSWER)]
    records = [reasoning_record(example, np.random.default_rng(seed)) for seed in range(20)]
    cut = [
        Plain(range(300), trained=True),
        Context(range(1000, 1072)),
        Plain(range(1072, 1200), trained=True),
    ]
    assert {len(record) for record in records} == {2, 3}
    assert all(record == cut for record in records if len(record) == 3)


def test_a_context_of_a_model_of_one_ratio_asks_for_none():
    record = [Context(range(3)), Plain(range(2)), Context(range(3), 4)]
    rng = np.random.default_rng(0)
    assert draw_ratios(record, rng, CompressionConfig(4, 32)) == record


def test_ratios_are_drawn_by_their_weights(tokenizer):
    compression, rng = CompressionConfig(4, 32, ratios=(8, 16)), np.random.default_rng(0)
    record = [Context(np.arange(9))] * 3000 + [Context(np.arange(9), 8)] * 50
    drawn = [span.ratio for span in draw_ratios(record, rng, compression, (0.5, 0.3, 0.2))]
    shares = [drawn[:3000].count(ratio) / 3000 for ratio in (4, 8, 16)]
    assert np.allclose(shares, (0.5, 0.3, 0.2), atol=0.03) and set(drawn[3000:]) == {8}
    equal = [span.ratio for span in draw_ratios(record, rng, compression)]
    assert np.allclose([equal[:3000].count(ratio) / 3000 for ratio in (4, 8, 16)], 1 / 3, atol=0.03)
    with pytest.raises(
        ConfigError, match=r"one weight for each ratio of \(4, 8, 16\), got \(1.0, 2.0\)"
    ):
        draw_ratios(record, rng, compression, (1.0, 2.0))


def test_a_ratio_the_model_lacks_is_one_of_its_own():
    record, rng = [Context(np.arange(9), 2)] * 40, np.random.default_rng(0)
    assert {
        span.ratio for span in draw_ratios(record, rng, CompressionConfig(4, 32, ratios=(8,)))
    } == {4, 8}
    assert {span.ratio for span in draw_ratios(record, rng, CompressionConfig(4, 32))} == {4}


def test_chats_are_no_documents(tokenizer):
    chat = tokenize_example(
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        tokenizer,
    )
    with pytest.raises(
        ConfigError, match="this stream reads documents, got an example of fixed, prompt"
    ):
        interleaved_record(chat, np.random.default_rng(0), DataConfig())


def test_contexts_stay_plain_with_their_probability():
    record = [Plain(range(2), trained=True)] + [Context(range(9), 8)] * 3000
    rng = np.random.default_rng(0)
    first, *contexts = leave_plain(record, rng, 0.3)
    assert first == record[0]
    assert set(map(type, contexts)) == {Context, Plain}
    assert all(span == Plain(range(9)) for span in contexts if isinstance(span, Plain))
    assert np.isclose(sum(isinstance(span, Plain) for span in contexts) / 3000, 0.3, atol=0.03)
    assert leave_plain(record, rng, 1.0) == record[:1] + [Plain(range(9))] * 3000


def test_nothing_is_drawn_where_no_context_stays_plain():
    record, rng = [Context(range(9))] * 5, np.random.default_rng(0)
    assert leave_plain(record, rng, 0.0) == record
    assert rng.random() == np.random.default_rng(0).random()
