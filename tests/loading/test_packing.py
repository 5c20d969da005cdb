"""Packing of examples into rows: no loss, slots beside their own context, and high fill."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lclm_jax.config import CompressionConfig, ModelConfig
from lclm_jax.data.loading.packing import (
    PackedRow,
    RowBudget,
    WindowPacker,
    assemble,
    choose_row,
    fill_row,
    pack_pieces,
)
from lclm_jax.data.records import Context, Plain, RecordSize, lay_out, measure
from tests.support.records import MEMORY, SPANS, TOWER, build, model

pytestmark = pytest.mark.newest


def sizes_of(examples):
    """Return what `measure` would, counted from the arrays."""
    pieces = [
        tuple((len(piece.tokens), piece.latents) for piece in example.pieces)
        for example in examples
    ]
    return [
        RecordSize(len(example), count, 0, 0)
        for example, count in zip(examples, pieces, strict=True)
    ]


def pack(examples, limits, lookahead=4):
    """Return the rows that the pipeline would make of these examples and no more."""
    waiting, coming, rows = [], list(examples), []
    while waiting or coming:
        while coming and len(waiting) < lookahead:
            waiting.append(coming.pop(0))
        chosen, packer = choose_row(sizes_of(waiting), limits)
        assert chosen[0] == 0 and len(set(chosen)) == len(chosen)
        rows.append(PackedRow(limits, [waiting[i] for i in chosen], packer.offsets))
        waiting = [example for i, example in enumerate(waiting) if i not in chosen]
    return rows


def expected_groups(record, config):
    """Yield the tokens behind every latent of a record, counted anew."""
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
def test_packing_keeps_every_token_and_every_slot_leads_to_its_context(
    specs, overlap, causal, ratio
):
    config = model(ratio, 8, "mean", overlap, causal)
    p = config.compression.latents_per_window
    limits = RowBudget(40, 3, config.window_length, p)
    records = [build(spans, 1000 * (i + 1)) for i, spans in enumerate(specs)]
    examples = [lay_out(record, config, MEMORY, stream=i) for i, record in enumerate(records)]
    # An example of no tokens would leave no trace by which to find it.
    sizes = [measure(record, config) for record in records]
    fitting = [
        example
        for example, size in zip(examples, sizes, strict=True)
        if limits.fits(size) and len(example)
    ]
    if not fitting:
        return
    rows = pack(fitting, limits)
    batch = assemble(rows)
    assert batch.tokens.shape == (len(rows), 40)
    assert batch.windows.tokens.shape == (len(rows), 3, config.window_length)
    packed = []
    for i, row in enumerate(rows):
        pieces, windows = [], jax.tree.map(lambda array, i=i: array[i], batch.windows)
        length, latents = 0, []
        for segment in range(1, batch.segments[i].max() + 1):
            (here,) = np.nonzero(batch.segments[i] == segment)
            number = batch.streams[i, here[0]]
            example = examples[number]
            packed.append(number)
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
            read = [
                windows.tokens[slot // p][windows.groups[slot // p] == slot % p].tolist()
                for slot in taken
            ]
            assert read == list(expected_groups(records[number], config))
            latents += taken
            pieces += [piece.tokens.tolist() for piece in example.pieces if len(piece.tokens)]
        assert len(set(latents)) == len(latents), "no two slots share a latent"
        assert set(latents) >= {
            c * p + g for c in range(3) for g in windows.groups[c].tolist() if g >= 0
        }
        padding = batch.segments[i] == 0
        assert (batch.slots[i, padding] == -1).all()
        assert not batch.tokens[i, padding].any() and not batch.weights[i, padding].any()
        assert sum(map(len, row.examples)) == length <= 40
        # Every segment of a window is one piece of one context, with positions from 0, and no token
        # lies outside of a segment.
        in_windows = []
        for tokens, segments, positions, groups in zip(
            windows.tokens, windows.segments, windows.positions, windows.groups, strict=True
        ):
            for segment in sorted(set(segments.tolist()) - {0}):
                in_windows.append(tokens[segments == segment].tolist())
                assert positions[segments == segment].tolist() == list(range(len(in_windows[-1])))
            assert (groups[segments == 0] == -1).all() and not tokens[segments == 0].any()
        assert sorted(in_windows) == sorted(pieces)
    assert sorted(packed) == [example.stream for example in fitting]


def layout(*spans, config=None):
    return lay_out(build(spans), config or model(ratio=4, window=8), MEMORY)


def test_contexts_that_share_a_window_are_told_apart():
    two, single = (
        layout(("context", 3), ("plain", 1), ("context", 2)),
        layout(("context", 4), ("plain", 1)),
    )
    batch = assemble(
        pack([two, single], RowBudget(positions=14, windows=1, window_length=10, window_latents=4))
    )
    assert batch.windows.segments.tolist() == [[[1, 1, 1, 2, 2, 3, 3, 3, 3, 0]]]
    assert batch.windows.positions.tolist() == [[[0, 1, 2, 0, 1, 0, 1, 2, 3, 0]]]
    assert batch.windows.groups.tolist() == [[[0, 0, 0, 1, 1, 2, 2, 2, 2, -1]]]
    assert batch.slots.tolist() == [[-1, 0, -1, -1, -1, 1, -1, -1, 2, -1, -1, -1, -1, -1]]
    assert batch.segments.tolist() == [[1] * 7 + [2] * 4 + [0] * 3]


def test_a_row_in_full():
    """Two examples, the first with a context of two windows that overlap, in every array."""
    config = model(ratio=4, window=8, overlap=2)
    spanning = layout(("context", 10), ("plain", 1), config=config)
    short = layout(("plain", 1), ("context", 3), ("context", 1), config=config)
    row = fill_row(RowBudget.for_model(config, 15, 3), [spanning, short])
    assert row.budget == RowBudget(15, 3, 10, 2) and row.examples == [spanning, short]
    batch = assemble([row])
    windows = jax.tree.map(lambda x: x[0].tolist(), batch.windows)
    assert windows.segments == [[1] * 8 + [0] * 2, [1] * 4 + [2] * 3 + [0] * 3, [1] + [0] * 9]
    assert windows.positions[0] == [*range(8), 0, 0]
    assert windows.positions[1] == [*range(4), *range(3), 0, 0, 0]
    assert windows.groups == [
        [0, 0, 0, 0, 1, 1, 1, 1, -1, -1],
        [-1, -1, 0, 0, 1, 1, 1] + [-1] * 3,
        [0] + [-1] * 9,
    ]
    # Contexts are numbered through the row from 1, positions of latents through their context.
    assert windows.latent_segments == [[1, 1], [1, 2], [3, 0]]
    assert windows.latent_positions == [[0, 1], [2, 0], [0, 0]]
    assert batch.slots.tolist() == [[-1, 0, 1, 2, -1, -1, -1, -1, 3, -1, -1, 4, -1, -1, -1]]
    assert batch.positions.tolist() == [[*range(6), *range(7), 0, 0]]
    assert batch.segments.tolist() == [[1] * 6 + [2] * 7 + [0] * 2]


def test_the_example_that_does_not_fit_is_the_one_that_is_named():
    examples = [layout(("plain", 6)), layout(("plain", 3)), layout(("context", 8), ("plain", 1))]
    with pytest.raises(ValueError, match="got one more of 5 positions and 1 windows$"):
        fill_row(RowBudget(12, 1, 8, 2), examples)


def test_pieces_take_the_fullest_window_that_holds_them():
    """The longest first; seats are numbered in the order of the pieces."""
    config = model(ratio=4, window=8)
    pieces = [(2, 1), (6, 2), (8, 2), (5, 1), (3, 1), (2, 0)]
    offsets = pack_pieces(pieces, config)
    assert offsets == [(3, 0, 0), (1, 0, 0), (0, 0, 0), (2, 0, 0), (2, 5, 1), (1, 6, 2)]
    assert pack_pieces([], config) == []
    assert pack_pieces([(8, 2)] * 4, config) == [(window, 0, 0) for window in range(4)]
    with pytest.raises(ValueError, match=r"^expected pieces of at most a window, got \(9, 1\)$"):
        pack_pieces([(1, 1), (9, 1)], config)


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
    limits = RowBudget(positions=20, windows=2, window_length=8, window_latents=2)
    assert limits.fits(measure(build(spans), model(ratio=4, window=8))) is fits
    if fits:
        assert fill_row(limits, [layout(*spans)]).offsets
    else:
        with pytest.raises(ValueError, match="expected examples that fit together"):
            fill_row(limits, [layout(*spans)])


def plain(*lengths):
    return [RecordSize(length, (), 0, 0) for length in lengths]


def test_a_row_is_filled_in_turn_and_then_by_the_largest_that_fits():
    limits = RowBudget(100, 1, 8, 2)
    assert choose_row(plain(20, 30, 35, 4, 9, 8, 15), limits)[0] == [0, 1, 2, 6], (
        "35 of the last 20 do not fit, 15 do"
    )
    assert choose_row(plain(90, 60, 3, 7, 1), limits)[0] == [0, 3, 2], "nearly full from the first"
    assert choose_row(plain(20, 75, 60, 30), limits)[0] == [0, 2], (
        "75 would leave less than half of what is kept for the end"
    )
    assert choose_row(plain(70, 22, 15, 10), limits)[0] == [0, 2, 3], (
        "22 would leave 8, less than half of the 20 that are kept for the end"
    )
    with pytest.raises(ValueError, match="expected an example that fits into"):
        choose_row([RecordSize(3, ((9, 1),), 0, 0)], limits)


def test_the_end_of_a_row_takes_what_lies_along_the_budget_that_is_left():
    limits = RowBudget(1000, 100, 10, 100)
    first = RecordSize(850, ((10, 1),) * 60, 0, 0)
    reader, writer = RecordSize(80, ((10, 1),) * 35, 0, 0), RecordSize(100, (), 0, 0)
    assert choose_row([first, writer, reader], limits)[0] == [0, 2], (
        "more windows than positions are left"
    )


@pytest.mark.parametrize(("tries", "added"), [(2, []), (3, [3])])
def test_a_row_is_full_after_so_many_tries_in_vain(tries, added, monkeypatch):
    """Two examples have more latents than are left; they fit by their lengths alone."""
    monkeypatch.setattr("lclm_jax.data.loading.packing.MAX_FAILED_TRIES", tries)
    first = RecordSize(85, ((2, 3),), 0, 0)
    others = [RecordSize(1, (piece,), 0, 0) for piece in ((6, 3), (5, 2), (4, 1))]
    assert choose_row([first, *others], RowBudget(100, 1, 8, 4))[0] == [0, *added]


def test_what_no_window_has_room_for_is_not_tried(monkeypatch):
    monkeypatch.setattr("lclm_jax.data.loading.packing.MAX_FAILED_TRIES", 1)
    first = RecordSize(85, ((5, 1), (5, 1)), 0, 0)
    others = [RecordSize(1, (piece,), 0, 0) for piece in ((5, 1), (1, 1))]
    assert choose_row([first, *others], RowBudget(100, 2, 8, 4))[0] == [0, 2]


@pytest.mark.parametrize(
    ("context", "order"),
    [
        # 15 of 100 positions and 8 of 20 in windows are left, 4 in each window. A text of 12
        # positions scores 12 * 0.0015, and nothing is left over of a window.
        (RecordSize(10, ((3, 1),), 0, 0), [0, 2]),  # 10 * 0.0015 + 3 * 0.02 - 1 / 20
        (RecordSize(3, ((3, 1),), 0, 0), [0, 1, 2]),
        (RecordSize(1, ((1, 1),), 0, 0), [0, 1, 2]),
    ],
)
def test_what_is_left_over_of_a_window_counts_against_an_example(context, order):
    first = RecordSize(85, ((6, 1), (6, 1)), 0, 0)
    assert choose_row([first, *plain(12), context], RowBudget(100, 2, 10, 9))[0] == order


def test_a_whole_window_leaves_nothing_over():
    first, whole = RecordSize(85, ((10, 1), (10, 1)), 0, 0), RecordSize(5, ((10, 1),), 0, 0)
    assert choose_row([first, *plain(14), whole], RowBudget(100, 3, 10, 9))[0] == [0, 2]


def test_after_one_in_vain_those_that_need_as_much_are_not_tried(monkeypatch):
    """Less in one respect, here shorter pieces, is worth a try; the same once more is not."""
    monkeypatch.setattr("lclm_jax.data.loading.packing.MAX_FAILED_TRIES", 2)
    first, vain = RecordSize(85, ((2, 3),), 0, 0), RecordSize(1, ((6, 3),), 0, 0)
    shorter, small = RecordSize(1, ((3, 1), (3, 0)), 0, 0), RecordSize(1, ((4, 1),), 0, 0)
    limits = RowBudget(100, 1, 8, 4)
    assert choose_row([first, vain, shorter], limits)[0] == [0, 2]
    assert choose_row([first, vain, vain, small], limits)[0] == [0, 3]


def test_those_who_wait_stay_a_fair_sample():
    """Short examples do not pile up behind long ones.

    Of two sorts that come equally often, equally many wait after long packing.
    """
    rng, limits = np.random.default_rng(0), RowBudget(1000, 10, 100, 100)
    short, long = RecordSize(20, ((30, 2),), 0, 0), RecordSize(150, ((100, 7),), 0, 0)
    waiting = []
    for _ in range(150):
        while len(waiting) < 200:
            waiting.append(short if rng.random() < 0.5 else long)
        chosen = set(choose_row(waiting, limits)[0])
        waiting = [size for i, size in enumerate(waiting) if i not in chosen]
    assert 0.35 < np.mean([size is short for size in waiting]) < 0.65


def test_pieces_are_seated_anew_where_they_did_not_fit_in_order():
    limits = RowBudget(100, 2, 10, 10)
    packer = WindowPacker(limits)
    assert packer.add([(4, 1), (4, 1)])  # both lie in the first window
    assert packer.add([(6, 1)])
    assert packer.add([(6, 1)]), "6 + 4 twice"
    assert not packer.add([(1, 1)])
    assert [[offset[0] for offset in offsets] for offsets in packer.offsets] == [[0, 1], [0], [1]]
    assert packer.offsets[0][0] == (0, 6, 1)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 10), st.integers(1, 4)), max_size=5), max_size=8))
def test_seats_never_overlap(examples):
    limits, added = RowBudget(100, 3, 10, 6), []
    packer = WindowPacker(limits)
    for pieces in examples:
        before = [list(offsets) for offsets in packer.offsets]
        if packer.add(pieces):
            added.append(pieces)
        else:
            assert [list(offsets) for offsets in packer.offsets] == before
    taken = set()
    for pieces, offsets in zip(added, packer.offsets, strict=True):
        for (length, latents), (window, position, latent) in zip(pieces, offsets, strict=True):
            assert window < 3 and position + length <= 10 and latent + latents <= 6
            here = {(window, "position", position + i) for i in range(length)} | {
                (window, "latent", latent + i) for i in range(latents)
            }
            assert not here & taken
            taken |= here


def test_rows_of_the_recipes_lengths_are_full():
    """Lognormal documents, half of them plain, fill more than 97 % of both budgets at ratio 16."""
    rng, config = np.random.default_rng(0), ModelConfig(TOWER, TOWER, CompressionConfig(16, 1024))
    lengths = np.clip(rng.lognormal(7.5, 1.0, 3000), 256, 14000).astype(int)
    sizes = [
        measure([Context(range(n // 2)), Plain(range(n - n // 2), True)], config) for n in lengths
    ]
    share = sum(size.encoder_positions for size in sizes) / sum(size.positions for size in sizes)
    limits = replace(
        RowBudget.for_model(config, 16384, round(16384 * share / 1024)), window_latents=72
    )  # data.spare_latents
    waiting, fills = sizes, []
    while len(waiting) > 1000:
        chosen, _ = choose_row(waiting[:1000], limits)
        fills.append(
            (
                sum(waiting[i].positions for i in chosen) / 16384,
                sum(waiting[i].encoder_positions for i in chosen) / limits.windows / 1024,
            )
        )
        waiting = [size for i, size in enumerate(waiting) if i not in set(chosen)]
    positions, windows = np.mean(fills, axis=0)
    assert positions > 0.97 and windows > 0.95, (positions, windows)
