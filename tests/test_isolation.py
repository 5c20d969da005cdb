"""Causality and isolation by gradients: exactly zero where nothing may flow, not zero where it must."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lclm_jax.data.packing import Budget, Row, assemble
from lclm_jax.data.spans import Context, Plain, lay_out
from lclm_jax.model.lclm import LCLM
from lclm_jax.model.masks import Places, attention_mask


def pack(records, config, tokenizer, positions=64, windows=2):
    row = Row(Budget(positions, windows, config.window_length, config.compression.latents_per_window))
    for record in records:
        example = lay_out(record, config, tokenizer.memory)
        seats = row.find(example)
        assert seats is not None
        row.add(example, seats)
    return assemble([row])


@pytest.fixture(scope="module")
def records():
    rng = np.random.default_rng(0)

    def tokens(n):
        return rng.integers(0, 256, n).astype(np.int32)

    first = [Plain(tokens(3)), Context(tokens(9)), Plain(tokens(4), True), Context(tokens(6)), Plain(tokens(5), True)]
    second = [Context(tokens(7)), Plain(tokens(6), True)]
    return [first, second]


@pytest.fixture(scope="module")
def flow(model_config, params, tokenizer, records):
    """How much of each hidden position [T] depends on each decoder input [T] and each encoder input [C, W]."""
    batch = pack(records, model_config, tokenizer)
    model = LCLM(model_config)
    # The residual branches start at zero; without them nothing would flow between positions anyway.
    noisy = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params)

    def hidden(decoder_noise, encoder_noise):
        def run(m):
            places = Places(batch.windows.segments[0], batch.windows.positions[0])
            read, _ = m.encoder(m.encoder.embed(batch.windows.tokens[0]) + encoder_noise, places)
            latents = m.project(m.pool(read[None], batch.windows.groups))
            from lclm_jax.model.lclm import place

            x = place(m.decoder.embed(batch.tokens) + decoder_noise, latents, batch.slots)
            return m.decoder(x, Places(batch.segments, batch.positions))[0]

        return model.apply({"params": noisy}, method=run)[0]

    c, w = batch.windows.tokens.shape[1:]
    zeros = jnp.zeros((1, batch.tokens.shape[1], model_config.decoder.width)), jnp.zeros((c, w, model_config.encoder.width))
    by_decoder, by_encoder = jax.jacrev(hidden, argnums=(0, 1))(*zeros)
    return batch, np.abs(by_decoder).sum((1, 2, 4)), np.abs(by_encoder).sum((1, 4))


def test_decoder_sees_its_own_past_and_nothing_else(flow):
    batch, by_decoder, _ = flow
    segments, slots = batch.segments[0], batch.slots[0]
    t = len(segments)
    for query in range(t):
        for key in range(t):
            visible = segments[query] == segments[key] > 0 and key <= query and slots[key] < 0
            if segments[query] > 0:
                assert (by_decoder[query, key] > 0) == visible, (query, key)


def test_context_reaches_only_what_follows_its_slots(flow):
    batch, _, by_encoder = flow
    slots, groups, segments = batch.slots[0], batch.windows.groups[0], batch.windows.segments[0]
    p = 4
    for query in range(len(slots)):
        if not batch.segments[0, query]:
            continue
        read = {s for s in slots[: query + 1][batch.segments[0, : query + 1] == batch.segments[0, query]] if s >= 0}
        for window in range(groups.shape[0]):
            for position in range(groups.shape[1]):
                # Causal encoder: a token reaches its own latent and the later ones of its piece.
                reached = {
                    window * p + groups[window, later]
                    for later in range(position, groups.shape[1])
                    if segments[window, later] == segments[window, position] > 0
                }
                assert (by_encoder[query, window, position] > 0) == bool(read & reached), (query, window, position)


def test_pieces_share_a_window(flow):
    batch = flow[0]
    assert batch.windows.segments[0].max() > 1, "the records must make contexts share a window for these tests to mean anything"


def test_mask_of_two_examples_and_a_pad():
    places = Places(jnp.array([[1, 1, 1, 2, 2, 0]]), jnp.array([[0, 1, 2, 0, 1, 0]]))
    causal = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    both = [
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    np.testing.assert_array_equal(attention_mask(places, places, True)[0], np.array(causal, bool))
    np.testing.assert_array_equal(attention_mask(places, places, False)[0], np.array(both, bool))


def test_packed_equals_alone(model_config, params, tokenizer, records):
    model = LCLM(model_config)
    noisy = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    together = model.apply({"params": noisy}, pack(records, model_config, tokenizer))[0]
    start = 0
    for record in records:
        alone = pack([record], model_config, tokenizer)
        length = int((alone.segments > 0).sum())
        expected = model.apply({"params": noisy}, alone)[0, :length]
        np.testing.assert_allclose(together[start : start + length], expected, atol=1e-5)
        start += length
