"""From raw examples to batches: windows, layout, the three streams, packing, resumption, sources and the demo's corpus."""

import ast
import dataclasses
import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lclm_jax.config import CompressionConfig, Config, ConfigError, DataConfig, ModelConfig, Stream, TransformerConfig
from lclm_jax.data import corpus
from lclm_jax.data.packing import Budget, Row, assemble, best_row
from lclm_jax.data.sources import open_source, pack_raw, read_source, source_path, split_of, unpack_raw, write_source
from lclm_jax.data.spans import (
    Context,
    Given,
    Plain,
    count_latents,
    language,
    lay_out,
    split_windows,
    uncompressed,
    without_contexts,
)
from lclm_jax.data.streams import PackedBatches, budget, stage_batches, stage_examples
from lclm_jax.data.tokens import MemoryTokens
from lclm_jax.data.transforms import (
    REQUESTS,
    crop,
    follow,
    interleave,
    reconstruct,
    segment_lengths,
    wrap_prompt,
)

MARKER = 99
MEMORY = MemoryTokens(start=101, end=102, slot=103, marker=MARKER)
TOWER = TransformerConfig(vocab=128, width=8, layers=1, heads=1, kv_heads=1, head_dim=8, mlp=8)


def model(ratio=2, window=4, pooling="mean", overlap=0, causal=True) -> ModelConfig:
    return ModelConfig(replace(TOWER, causal=causal), TOWER, CompressionConfig(ratio, window, pooling, overlap))


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.int32)


def same(first, second) -> bool:
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


# Windows and layout


@pytest.mark.parametrize(("length", "latents"), [(0, 1), (1, 1), (4, 1), (5, 2), (31, 8), (32, 8), (33, 9), (64, 16), (69, 18)])
def test_latents_of_a_context(length, latents):
    assert count_latents(length, model(ratio=4, window=32)) == latents


NINE = ids(1, 2, 3, 4, 5, 6, 7, 8, 9)
PLAIN_WINDOWS = [([1, 2, 3, 4], [0, 0, 1, 1]), ([5, 6, 7, 8], [0, 0, 1, 1]), ([9], [0])]
LEFT_OVERLAP = [([1, 2, 3, 4], [0, 0, 1, 1]), ([4, 5, 6, 7, 8], [-1, 0, 0, 1, 1]), ([8, 9], [-1, 0])]
EOS_WINDOWS = [
    ([1, 2, 3, 4, MARKER, MARKER], [-1, -1, -1, -1, 0, 1]),
    ([5, 6, 7, 8, MARKER, MARKER], [-1, -1, -1, -1, 0, 1]),
    ([9, MARKER], [-1, 0]),
]


@pytest.mark.parametrize(
    ("pooling", "overlap", "causal", "expected"),
    [
        ("mean", 0, True, PLAIN_WINDOWS),
        ("mean", 0, False, PLAIN_WINDOWS),
        ("concat", 0, True, PLAIN_WINDOWS),
        ("mean", 1, True, LEFT_OVERLAP),
        ("concat", 1, True, LEFT_OVERLAP),
        (
            "mean",
            3,
            False,
            [
                ([1, 2, 3, 4, 5, 6, 7], [0, 0, 1, 1, -1, -1, -1]),
                ([2, 3, 4, 5, 6, 7, 8, 9], [-1, -1, -1, 0, 0, 1, 1, -1]),
                ([6, 7, 8, 9], [-1, -1, -1, 0]),
            ],
        ),
        ("eos", 0, True, EOS_WINDOWS),
        ("eos", 0, False, EOS_WINDOWS),
        (
            "eos",
            1,
            True,
            [
                ([1, 2, 3, 4, MARKER, MARKER], [-1, -1, -1, -1, 0, 1]),
                ([4, 5, 6, 7, 8, MARKER, MARKER], [-1, -1, -1, -1, -1, 0, 1]),
                ([8, 9, MARKER], [-1, -1, 0]),
            ],
        ),
        (
            "eos",
            1,
            False,
            [
                ([1, 2, 3, 4, 5, MARKER, MARKER], [-1, -1, -1, -1, -1, 0, 1]),
                ([4, 5, 6, 7, 8, 9, MARKER, MARKER], [-1, -1, -1, -1, -1, -1, 0, 1]),
                ([8, 9, MARKER], [-1, -1, 0]),
            ],
        ),
    ],
)
def test_windows_overlap_and_groups(pooling, overlap, causal, expected):
    pieces = split_windows(Context(NINE), model(2, 4, pooling, overlap, causal), MARKER)
    assert [(piece.tokens.tolist(), piece.groups.tolist()) for piece in pieces] == expected
    assert [piece.latents for piece in pieces] == [2, 2, 1]


@pytest.mark.parametrize("pooling", ["mean", "concat", "eos"])
def test_an_empty_context_is_one_latent_of_no_tokens(pooling):
    (piece,) = split_windows(Context(ids()), model(pooling=pooling, overlap=2), MARKER)
    assert (piece.tokens.tolist(), piece.groups.tolist(), piece.latents) == ([], [], 1)


@settings(max_examples=150, deadline=None)
@given(
    length=st.integers(0, 120),
    ratio=st.integers(1, 5),
    groups=st.integers(1, 5),
    overlap=st.integers(0, 9),
    pooling=st.sampled_from(["mean", "concat", "eos"]),
    causal=st.booleans(),
)
def test_every_token_is_pooled_once_and_latents_are_as_many_as_counted(length, ratio, groups, overlap, pooling, causal):
    config = model(ratio, ratio * groups, pooling, overlap, causal)
    tokens = np.arange(1000, 1000 + length, dtype=np.int32)
    pieces = split_windows(Context(tokens), config, MARKER)
    assert sum(piece.latents for piece in pieces) == count_latents(length, config)
    assert all(len(piece.tokens) <= config.window_length and piece.latents <= groups for piece in pieces)
    pooled = [piece.tokens[piece.groups >= 0] for piece in pieces]
    sizes = [np.bincount(piece.groups[piece.groups >= 0], minlength=piece.latents).tolist() for piece in pieces]
    if pooling == "eos":
        assert all((markers == MARKER).all() for markers in pooled)
        assert all(counts == [1] * piece.latents for counts, piece in zip(sizes, pieces, strict=True) if length)
    else:
        assert np.concatenate(pooled).tolist() == tokens.tolist()
        for counts in sizes:
            assert all(count == ratio for count in counts[:-1])
            assert len(counts) <= groups
            assert 0 < counts[-1] <= ratio or not length


def test_layout_of_the_worked_example():
    example = lay_out([Plain(ids(5)), Context(ids(7, 8, 9)), Plain(ids(6), True)], model(ratio=2), MEMORY, stream=3)
    start, end, slot = MEMORY.start, MEMORY.end, MEMORY.slot
    assert example.tokens.tolist() == [5, start, slot, slot, end, 6]
    assert example.targets.tolist() == [start, slot, slot, end, 6, 0]
    assert example.weights.tolist() == [0, 0, 0, 0, 1, 0]
    assert example.slots.tolist() == [-1, -1, 0, 1, -1, -1]
    assert [(piece.tokens.tolist(), piece.groups.tolist()) for piece in example.pieces] == [([7, 8, 9], [0, 0, 1])]
    assert (len(example), example.stream) == (6, 3)


def test_given_latents_get_slots_and_no_window():
    example = lay_out([Given(2), Plain(ids(6), True)], model(), MEMORY)
    assert example.tokens.tolist() == [MEMORY.start, MEMORY.slot, MEMORY.slot, MEMORY.end, 6]
    assert example.slots.tolist() == [-1, 0, 1, -1, -1]
    assert example.pieces == []


@pytest.mark.parametrize("record", [[], [Plain(ids())]])
def test_a_record_of_nothing_is_an_empty_example(record):
    example = lay_out(record, model(), MEMORY)
    assert [len(array) for array in (example.tokens, example.targets, example.weights, example.slots)] == [0, 0, 0, 0]


SPANS = st.lists(st.tuples(st.sampled_from(["context", "plain", "trained"]), st.integers(0, 11)), min_size=1, max_size=5)


def build(spans, first=1000):
    """A record in which every token is another, so that each can be found again."""
    record = []
    for kind, length in spans:
        tokens = np.arange(first, first + length, dtype=np.int32)
        record.append(Context(tokens) if kind == "context" else Plain(tokens, kind == "trained"))
        first += length
    return record


@settings(max_examples=100, deadline=None)
@given(SPANS)
def test_exactly_the_trained_tokens_after_the_first_position_carry_weight(spans):
    record, config = build(spans), model(ratio=2, window=4)
    example = lay_out(record, config, MEMORY)
    trained = [token for span in record if isinstance(span, Plain) and span.trained for token in span.tokens.tolist()]
    if len(example) and trained and example.tokens[0] == trained[0]:
        trained = trained[1:]  # nothing comes before it
    assert example.targets[example.weights == 1].tolist() == trained
    assert example.targets[: len(example)].tolist() == [*example.tokens[1:].tolist(), 0][: len(example)]
    numbers = example.slots[example.slots >= 0]
    assert numbers.tolist() == list(range(sum(piece.latents for piece in example.pieces)))
    assert (example.tokens[example.slots >= 0] == MEMORY.slot).all()


def test_the_other_views_of_a_record():
    record = [Plain(ids(1)), Context(ids(2, 3)), Plain(ids(4), True), Given(2)]

    def told(spans):
        return [
            span if isinstance(span, Given) else (type(span), span.tokens.tolist(), getattr(span, "trained", None))
            for span in spans
        ]

    assert told(uncompressed(record)) == [(Plain, [1], False), (Plain, [2, 3], False), (Plain, [4], True), Given(2)]
    assert told(language(record)) == [(Plain, [1], True), (Plain, [2, 3], True), (Plain, [4], True), Given(2)]
    assert told(without_contexts(record)) == [(Plain, [1], False), (Plain, [4], True), Given(2)]
    assert isinstance(record[1], Context), "a view leaves the record as it was"


# The three streams


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


# Packing


def pack(examples, limits, open_rows=3):
    """The rows the pipeline would make: best fit into a few open rows."""
    rows, done = [], []
    for example in examples:
        best = best_row(rows, example)
        if best is None:
            rows.append(Row(limits))
            best = len(rows) - 1
        rows[best].add(example, rows[best].find(example))
        if len(rows) > open_rows:
            done.append(rows.pop(0))
    return done + rows


def expected_groups(record, config):
    """Tokens behind every latent of a record, reckoned anew."""
    window, ratio = config.compression.window, config.compression.ratio
    for context in (span.tokens for span in record if isinstance(span, Context)):
        for start in range(0, max(1, len(context)), window):
            own = context[start : start + window]
            yield from (own[i : i + ratio].tolist() for i in range(0, max(1, len(own)), ratio))


@settings(max_examples=60, deadline=None)
@given(
    specs=st.lists(SPANS, min_size=1, max_size=12),
    overlap=st.sampled_from([0, 3]),
    causal=st.booleans(),
    ratio=st.sampled_from([2, 4]),
)
def test_packing_keeps_every_token_and_every_slot_leads_to_its_context(specs, overlap, causal, ratio):
    config = model(ratio, 8, "mean", overlap, causal)
    p = config.compression.latents_per_window
    limits = Budget(40, 3, config.window_length, p)
    records = [build(spans, 1000 * (i + 1)) for i, spans in enumerate(specs)]
    examples = [lay_out(record, config, MEMORY, stream=i) for i, record in enumerate(records)]
    # An example of no tokens would leave no trace by which to find it.
    fitting = [example for example in examples if limits.fits_alone(example) and len(example)]
    if not fitting:
        return
    rows = pack(fitting, limits)
    batch = assemble(rows)
    assert batch.tokens.shape == (len(rows), 40)
    assert batch.windows.tokens.shape == (len(rows), 3, config.window_length)
    found = []
    for i, row in enumerate(rows):
        pieces, windows = [], jax.tree.map(lambda array, i=i: array[i], batch.windows)
        length, latents = 0, []
        for segment in range(1, batch.segments[i].max() + 1):
            (here,) = np.nonzero(batch.segments[i] == segment)
            number = batch.streams[i, here[0]]
            example = examples[number]
            found.append(number)
            assert here.tolist() == list(range(length, length + len(example)))
            length += len(example)
            assert batch.tokens[i, here].tolist() == example.tokens.tolist()
            assert batch.targets[i, here].tolist() == example.targets.tolist()
            assert batch.weights[i, here].tolist() == example.weights.tolist()
            assert batch.positions[i, here].tolist() == list(range(len(example)))
            assert set(batch.streams[i, here].tolist()) == {number}
            slots = batch.slots[i, here]
            assert ((slots >= 0) == (example.slots >= 0)).all()
            taken = slots[slots >= 0].tolist()
            read = [windows.tokens[slot // p][windows.groups[slot // p] == slot % p].tolist() for slot in taken]
            assert read == list(expected_groups(records[number], config))
            latents += taken
            pieces += [piece.tokens.tolist() for piece in example.pieces if len(piece.tokens)]
        assert len(set(latents)) == len(latents), "no two slots share a latent"
        assert set(latents) >= {c * p + g for c in range(3) for g in windows.groups[c].tolist() if g >= 0}
        padding = batch.segments[i] == 0
        assert (batch.slots[i, padding] == -1).all()
        assert not batch.tokens[i, padding].any() and not batch.weights[i, padding].any()
        assert row.length == length <= 40
        # Every segment of a window is one piece of one context, positions from 0; nothing lies outside.
        in_windows = []
        for tokens, segments, positions, groups in zip(
            windows.tokens, windows.segments, windows.positions, windows.groups, strict=True
        ):
            for segment in sorted(set(segments.tolist()) - {0}):
                in_windows.append(tokens[segments == segment].tolist())
                assert positions[segments == segment].tolist() == list(range(len(in_windows[-1])))
            assert (groups[segments == 0] == -1).all() and not tokens[segments == 0].any()
        assert sorted(in_windows) == sorted(pieces)
    assert sorted(found) == [example.stream for example in fitting]


def layout(*spans, config=None):
    return lay_out(build(spans), config or model(ratio=4, window=8), MEMORY)


def test_contexts_that_share_a_window_are_told_apart():
    two, one = layout(("context", 3), ("plain", 1), ("context", 2)), layout(("context", 4), ("plain", 1))
    batch = assemble(pack([two, one], Budget(positions=14, windows=1, window_length=10, window_latents=4)))
    assert batch.windows.segments.tolist() == [[[1, 1, 1, 2, 2, 3, 3, 3, 3, 0]]]
    assert batch.windows.positions.tolist() == [[[0, 1, 2, 0, 1, 0, 1, 2, 3, 0]]]
    assert batch.windows.groups.tolist() == [[[0, 0, 0, 1, 1, 2, 2, 2, 2, -1]]]
    assert batch.slots.tolist() == [[-1, 0, -1, -1, -1, 1, -1, -1, 2, -1, -1, -1, -1, -1]]
    assert batch.segments.tolist() == [[1] * 7 + [2] * 4 + [0] * 3]


@pytest.mark.parametrize(
    ("spans", "fits"),
    [
        ([("plain", 20)], True),
        ([("plain", 21)], False),
        ([("context", 8), ("plain", 16)], True),  # two tags and two slots
        ([("context", 8), ("plain", 17)], False),
        ([("context", 16)], True),
        ([("context", 17)], False),  # a third window
        ([("context", 1)] * 4, True),
        ([("context", 1)] * 5, False),  # 5 latents where two windows have 4
        ([("context", 0)] * 5, False),
    ],
)
def test_what_fits_into_a_row_of_its_own(spans, fits):
    limits = Budget(positions=20, windows=2, window_length=8, window_latents=2)
    assert limits.fits_alone(layout(*spans)) is fits


def test_an_example_goes_to_the_fullest_row_it_fits_and_the_oldest_of_equals():
    limits = Budget(10, 1, 8, 2)
    rows = [Row(limits) for _ in range(4)]
    for row, length in zip(rows, (2, 6, 6, 9), strict=True):
        row.add(layout(("plain", length)), [])
    assert best_row(rows, layout(("plain", 3))) == 1
    assert best_row(rows, layout(("plain", 1))) == 3
    assert best_row(rows, layout(("plain", 8))) == 0
    assert best_row(rows, layout(("plain", 9))) is None


# Sources


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


# The input pipeline


def packed(config, tokenizer, host=0, hosts=1):
    return iter(PackedBatches(stage_examples(config, config.stages[0], tokenizer), config, host, hosts))


def prefetched(config, tokenizer, host=0, hosts=1):
    return iter(stage_batches(config, config.stages[0], tokenizer, host, hosts))


def take(batches, count):
    return [next(batches) for _ in range(count)]


def through_json(state):
    return json.loads(json.dumps(state))


def test_batches_have_the_configured_shape_and_all_differ(config, tokenizer):
    batches = take(packed(config, tokenizer), 3)
    for batch in batches:
        assert batch.tokens.shape == (8, 96)
        assert batch.windows.tokens.shape == (8, 4, 16)
        assert (batch.segments.max(axis=1) >= 1).all()
        assert (batch.slots.max(axis=1) < 4 * 4).all()
        assert not batch.weights[batch.segments == 0].any()
    assert not any(same(one, other) for one, other in pairwise(batches))


@pytest.mark.parametrize("make", [packed, prefetched])
@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_restored_pipeline_goes_on_where_it_was(config, tokenizer, make, before):
    first = make(config, tokenizer)
    take(first, before)
    state = first.get_state()
    later = take(first, 3)
    second = make(config, tokenizer)
    second.set_state(through_json(state))
    assert all(same(*pair) for pair in zip(later, take(second, 3), strict=True))


def test_a_pipeline_can_be_set_back(config, tokenizer):
    batches = packed(config, tokenizer)
    state = batches.get_state()
    start = take(batches, 2)
    batches.set_state(state)
    assert all(same(*pair) for pair in zip(start, take(batches, 2), strict=True))


def test_prefetching_changes_nothing(config, tokenizer):
    pairs = zip(take(packed(config, tokenizer), 3), take(prefetched(config, tokenizer), 3), strict=True)
    assert all(same(*pair) for pair in pairs)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_read_the_batches_of_one(config, tokenizer, hosts):
    alone = take(packed(config, tokenizer), 2)
    shares = [take(packed(config, tokenizer, host, hosts), 2) for host in range(hosts)]
    for batch, *parts in zip(alone, *shares, strict=True):
        assert all(len(part.tokens) == 8 // hosts for part in parts)
        assert same(batch, jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts))


def test_a_state_saved_on_four_hosts_goes_on_with_two(config, tokenizer):
    states = []
    for host in range(4):
        batches = packed(config, tokenizer, host, 4)
        take(batches, 2)
        states.append(batches.get_state())
    assert all(state == states[0] for state in states)
    expected = take(packed(config, tokenizer), 3)[2]
    restored = [packed(config, tokenizer, host, 2) for host in range(2)]
    for batches in restored:
        batches.set_state(through_json(states[3]))
    parts = [next(batches) for batches in restored]
    assert same(expected, jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts))


def test_rows_must_divide_over_the_hosts(config, tokenizer):
    with pytest.raises(ConfigError, match="data.rows must divide over the hosts, got data.rows=8 on 3 hosts"):
        stage_batches(config, config.stages[0], tokenizer, 0, 3)


def test_too_long_examples_are_counted_by_stream_and_left_out(config, tokenizer):
    short = replace(config, data=replace(config.data, positions=44))
    batches = packed(short, tokenizer)
    emitted = take(batches, 4)
    state, limits = batches.get_state(), budget(short)
    examples = stage_examples(short, short.stages[0], tokenizer)
    seen = [examples[i] for i in range(state["next"])]
    too_long = Counter(str(example.stream) for example in seen if not limits.fits_alone(example))
    assert state["too_long"] == too_long and too_long.total() > 10
    restored = packed(short, tokenizer)
    restored.set_state(through_json(state))
    assert restored.get_state() == state
    out = sum(int(batch.segments.max(axis=1).sum()) for batch in emitted)
    waiting = [number for numbers in state["open"] for number in numbers]
    assert out + len(waiting) + too_long.total() == state["next"]
    told = {tuple(seen[i].tokens.tolist()) for i in range(len(seen)) if i not in waiting and limits.fits_alone(seen[i])}
    for batch in emitted:
        for tokens, segments in zip(batch.tokens, batch.segments, strict=True):
            assert {tuple(tokens[segments == n].tolist()) for n in range(1, segments.max() + 1)} <= told


def test_streams_are_mixed_by_their_shares(config, tokenizer):
    examples = stage_examples(config, config.stages[0], tokenizer)
    streams = Counter(examples[i].stream for i in range(1000))
    assert all(abs(streams[number] - expected) <= 1 for number, expected in enumerate((500, 300, 200)))


def test_examples_depend_on_their_number_stage_and_seed_alone(config, tokenizer):
    def tokens(settings: Config, stage=0):
        examples = stage_examples(settings, settings.stages[stage], tokenizer)
        return [examples[i].tokens.tolist() for i in (7, 0, 150)]

    assert tokens(config) == tokens(config)
    assert tokens(config) != tokens(config, stage=1)
    assert tokens(config) != tokens(replace(config, data=replace(config.data, seed=1)))


def test_every_pass_over_a_source_is_in_a_new_order(config, tokenizer):
    one = replace(config.stages[0], streams=(Stream("reconstruction", "docs", 1.0),))
    whole = replace(config, stages=(one,), data=replace(config.data, reconstruction=(400, 400)))
    examples = stage_examples(whole, one, tokenizer)
    passes = [[tuple(examples[start + i].pieces[0].tokens.tolist()) for i in range(50)] for start in (0, 50)]
    assert sorted(passes[0]) == sorted(passes[1])
    assert passes[0] != passes[1]
    assert len(set(passes[0])) == 50


def test_a_stage_without_compression_reads_the_same_tokens_as_text(config, tokenizer):
    compressed = stage_examples(config, config.stages[0], tokenizer)
    stage = replace(config.stages[0], compress=False)
    plain = stage_examples(replace(config, stages=(stage, config.stages[1])), stage, tokenizer)
    for i in range(20):
        assert plain[i].pieces == [] and (plain[i].slots == -1).all()
        assert plain[i].weights.tolist() == [1.0] * (len(plain[i]) - 1) + [0.0]
        held = [piece.tokens.tolist() for piece in compressed[i].pieces]
        text = plain[i].tokens.tolist()
        assert all(any(text[s : s + len(h)] == h for s in range(len(text))) for h in held)


def test_held_out_examples_come_from_the_held_out_file(config, tokenizer, tmp_path):
    for split, token in (("train", 5), ("held", 6)):
        write_source(source_path(tmp_path, "docs", split), [{"tokens": np.full(40, token), "kind": "text"}])
    stage = replace(config.stages[0], streams=(Stream("interleaved", "docs", 1.0),))
    here = replace(config, stages=(stage,), data=replace(config.data, directory=str(tmp_path)))
    assert set(stage_examples(here, stage, tokenizer, "held")[0].pieces[0].tokens.tolist()) == {6}
    assert set(stage_examples(here, stage, tokenizer)[0].pieces[0].tokens.tolist()) == {5}


# The demo's corpus


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
