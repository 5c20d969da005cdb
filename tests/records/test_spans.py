"""Examples made from records: windows, groups, slots, targets and the other views."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lclm_jax.config import ConfigError
from lclm_jax.data.records import (
    Context,
    Given,
    Plain,
    RecordSize,
    count_latents,
    cut_windows,
    lay_out,
    measure,
    split_windows,
)
from lclm_jax.data.records.views import as_plain_text, as_trained_text, at_ratio, without_contexts
from lclm_jax.data.records.windows import window_bounds
from tests.support.records import MARKER, MEMORY, SPANS, build, ids, model

pytestmark = pytest.mark.newest


@pytest.mark.parametrize(
    ("length", "latents"),
    [(0, 1), (1, 1), (4, 1), (5, 2), (31, 8), (32, 8), (33, 9), (64, 16), (69, 18)],
)
def test_latents_of_a_context(length, latents):
    assert count_latents(length, model(ratio=4, window=32)) == latents


NINE = ids(1, 2, 3, 4, 5, 6, 7, 8, 9)
PLAIN_WINDOWS = [([1, 2, 3, 4], [0, 0, 1, 1]), ([5, 6, 7, 8], [0, 0, 1, 1]), ([9], [0])]
LEFT_OVERLAP = [
    ([1, 2, 3, 4], [0, 0, 1, 1]),
    ([4, 5, 6, 7, 8], [-1, 0, 0, 1, 1]),
    ([8, 9], [-1, 0]),
]
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
def test_every_token_is_pooled_once_and_latents_are_as_many_as_counted(
    length, ratio, groups, overlap, pooling, causal
):
    config = model(ratio, ratio * groups, pooling, overlap, causal)
    tokens = np.arange(1000, 1000 + length, dtype=np.int32)
    pieces = split_windows(Context(tokens), config, MARKER)
    assert sum(piece.latents for piece in pieces) == count_latents(length, config)
    assert all(
        len(piece.tokens) <= config.window_length and piece.latents <= groups for piece in pieces
    )
    pooled = [piece.tokens[piece.groups >= 0] for piece in pieces]
    sizes = [
        np.bincount(piece.groups[piece.groups >= 0], minlength=piece.latents).tolist()
        for piece in pieces
    ]
    if pooling == "eos":
        assert all((markers == MARKER).all() for markers in pooled)
        assert all(
            counts == [1] * piece.latents
            for counts, piece in zip(sizes, pieces, strict=True)
            if length
        )
    else:
        assert np.concatenate(pooled).tolist() == tokens.tolist()
        for counts in sizes:
            assert all(count == ratio for count in counts[:-1])
            assert len(counts) <= groups
            assert 0 < counts[-1] <= ratio or not length


def test_layout_of_the_worked_example():
    example = lay_out(
        [Plain(ids(5)), Context(ids(7, 8, 9)), Plain(ids(6), True)],
        model(ratio=2),
        MEMORY,
        stream=3,
    )
    start, end, slot = MEMORY.start, MEMORY.end, MEMORY.slot
    assert example.tokens.tolist() == [5, start, slot, slot, end, 6]
    assert example.targets.tolist() == [start, slot, slot, end, 6, 0]
    assert example.weights.tolist() == [0, 0, 0, 0, 1, 0]
    assert example.slots.tolist() == [-1, -1, 0, 1, -1, -1]
    assert [(piece.tokens.tolist(), piece.groups.tolist()) for piece in example.pieces] == [
        ([7, 8, 9], [0, 0, 1])
    ]
    assert (len(example), example.stream) == (6, 3)


def test_given_latents_get_slots_and_no_window():
    example = lay_out([Given(2), Plain(ids(6), True)], model(), MEMORY)
    assert example.tokens.tolist() == [MEMORY.start, MEMORY.slot, MEMORY.slot, MEMORY.end, 6]
    assert example.slots.tolist() == [-1, 0, 1, -1, -1]
    assert example.pieces == []
    both = [Plain(ids(1)), Given(2), Given(3)]
    assert measure(both, model()).positions == len(lay_out(both, model(), MEMORY)) == 10


def two_ratios():
    """Windows of four tokens, read at two tokens a latent or, where a context asks for it, four."""
    config = model(ratio=2, window=4)
    return replace(config, compression=replace(config.compression, ratios=(4,)))


def test_contexts_at_ratios_of_their_own_beside_given_latents():
    """Pieces have the number of their context in the record, and of their first latent."""
    record = [Given(2), Context(range(5)), Plain(range(7, 9), True), Context(range(6), ratio=4)]
    example = lay_out(record, two_ratios(), MEMORY)
    assert example.slots.tolist() == [-1, 0, 1, -1, -1, 2, 3, 4, -1, -1, -1, -1, 5, 6, -1]
    assert example.weights.tolist() == [0] * 8 + [1, 1] + [0] * 5
    assert [piece.context for piece in example.pieces] == [1, 1, 3, 3]
    assert [piece.first for piece in example.pieces] == [0, 2, 0, 1]
    assert [piece.groups.tolist() for piece in example.pieces] == [
        [0, 0, 1, 1],
        [0],
        [0] * 4,
        [0] * 2,
    ]
    assert example.stream == 0
    size = measure(record, two_ratios())
    assert size == RecordSize(15, ((4, 2), (1, 1), (4, 1), (2, 1)), trained=2, compressed=11)
    assert size.encoder_positions == 11
    arrays = (example.tokens, example.targets, example.slots, example.weights)
    assert [array.dtype for array in arrays] == [np.int32] * 3 + [np.float32]
    assert {x.dtype for piece in example.pieces for x in (piece.tokens, piece.groups)} == {
        np.dtype(np.int32)
    }
    at_four = at_ratio(record, 4)
    assert [span.ratio for span in at_four if isinstance(span, Context)] == [4, 4]
    assert [at_four[0], at_four[2]] == [record[0], record[2]]


def test_a_window_of_one_token():
    config = model(ratio=1, window=1)
    assert [list(window_bounds(length, config)) for length in range(3)] == [
        [(0, 0, 0, 0)],
        [(0, 0, 1, 1)],
        [(0, 0, 1, 1), (1, 1, 2, 2)],
    ]


@pytest.mark.parametrize(
    ("causal", "expected"),
    [
        (True, [(4, [1, 2, 3, 4], 0), (11, [4, 5, 6, 7, 8], 2), (11, [8, 9, 10, 11], 4)]),
        (False, [(5, [1, 2, 3, 4, 5], 0), (11, [4, 5, 6, 7, 8, 9], 2), (11, [8, 9, 10, 11], 4)]),
    ],
)
def test_a_window_comes_as_soon_as_the_tokens_it_reads_are_there(causal, expected):
    """Windows of four tokens read one more on the left and, unless causal, on the right."""
    config = model(ratio=2, window=4, overlap=1, causal=causal)
    came = []

    def parts():
        for part in (ids(1, 2, 3, 4), ids(5), ids(6, 7, 8, 9, 10, 11)):
            came.append(len(part))
            yield part

    pieces = cut_windows(parts(), config)
    assert [(sum(came), piece.tokens.tolist(), piece.first) for piece in pieces] == expected


@pytest.mark.parametrize("size", [1, 3, 7, 50])
def test_tokens_that_come_in_parts_are_cut_as_the_whole(size):
    config, tokens = (
        model(ratio=2, window=4, overlap=3, causal=False),
        np.arange(47, dtype=np.int32),
    )
    parts = [tokens[i : i + size] for i in range(0, len(tokens), size)]
    whole = split_windows(Context(tokens), config)
    for piece, expected in zip(cut_windows(parts, config), whole, strict=True):
        assert piece.tokens.tolist() == expected.tokens.tolist()
        assert (piece.first, piece.groups.tolist()) == (expected.first, expected.groups.tolist())


def test_markers_of_eos_pooling_are_those_of_the_tokenizer():
    config = model(ratio=2, window=4, pooling="eos")
    (piece,) = lay_out([Context(ids(1, 2, 3))], config, MEMORY).pieces
    assert piece.tokens.tolist() == [1, 2, 3, MARKER, MARKER]
    for (unnamed,) in (split_windows(Context(ids(1)), config), list(cut_windows([ids(1)], config))):
        assert unnamed.tokens.tolist() == [1, 0]


def test_a_ratio_the_model_lacks_is_refused_with_those_it_has():
    for refused in (count_latents, lambda *_: split_windows(Context(ids(1), 3), two_ratios())):
        with pytest.raises(ConfigError) as error:
            refused(5, two_ratios(), 3)
        assert str(error.value) == (
            "this model compresses at ratio 2, 4, got ratio=3; load a model trained for "
            "ratio 3, or add it to compression.ratios"
        )


@pytest.mark.parametrize("record", [[], [Plain(ids())]])
def test_a_record_of_nothing_is_an_empty_example(record):
    example = lay_out(record, model(), MEMORY)
    assert [
        len(array) for array in (example.tokens, example.targets, example.weights, example.slots)
    ] == [0, 0, 0, 0]


@settings(max_examples=100, deadline=None)
@given(SPANS)
def test_exactly_the_trained_tokens_after_the_first_position_carry_weight(spans):
    record, config = build(spans), model(ratio=2, window=4)
    example = lay_out(record, config, MEMORY)
    trained = [
        token
        for span in record
        if isinstance(span, Plain) and span.trained
        for token in span.tokens.tolist()
    ]
    if len(example) and trained and example.tokens[0] == trained[0]:
        trained = trained[1:]  # nothing comes before it
    assert example.targets[example.weights == 1].tolist() == trained
    assert (
        example.targets[: len(example)].tolist()
        == [*example.tokens[1:].tolist(), 0][: len(example)]
    )
    numbers = example.slots[example.slots >= 0]
    assert numbers.tolist() == list(range(sum(piece.latents for piece in example.pieces)))
    assert (example.tokens[example.slots >= 0] == MEMORY.slot).all()


def test_the_other_views_of_a_record():
    record = [Plain(ids(1)), Context(ids(2, 3)), Plain(ids(4), True), Given(2)]

    def contents(spans):
        return [
            span
            if isinstance(span, Given)
            else (type(span), span.tokens.tolist(), getattr(span, "trained", None))
            for span in spans
        ]

    assert contents(as_plain_text(record)) == [
        (Plain, [1], False),
        (Plain, [2, 3], False),
        (Plain, [4], True),
        Given(2),
    ]
    assert contents(as_trained_text(record)) == [
        (Plain, [1], True),
        (Plain, [2, 3], True),
        (Plain, [4], True),
        Given(2),
    ]
    assert contents(without_contexts(record)) == [(Plain, [1], False), (Plain, [4], True), Given(2)]
    assert isinstance(record[1], Context), "a view leaves the record as it was"


@settings(max_examples=150, deadline=None)
@given(
    spans=SPANS,
    overlap=st.sampled_from([0, 3]),
    causal=st.booleans(),
    pooling=st.sampled_from(["mean", "eos"]),
    ratio=st.sampled_from([2, 4]),
)
def test_an_examples_size_is_that_of_its_arrays_though_its_tokens_are_ranges(
    spans, overlap, causal, pooling, ratio
):
    config = model(ratio, 8, pooling, overlap, causal)
    record = build(spans)
    ranges = [replace(span, tokens=range(len(span.tokens))) for span in record]
    example, size = lay_out(record, config, MEMORY), measure(ranges, config)
    assert size == measure(record, config)
    assert size.positions == len(example)
    assert size.pieces == tuple((len(piece.tokens), piece.latents) for piece in example.pieces)
    assert size.trained == example.weights.sum()
    assert size.compressed == sum(len(span.tokens) for span in record if isinstance(span, Context))
