"""Examples into rows: nothing is lost, every slot leads to its own context, and rows are filled well."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import MEMORY, SPANS, build, model

from lclm_jax.data.packing import Budget, Row, assemble, best_row
from lclm_jax.data.spans import (
    Context,
    lay_out,
)


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
