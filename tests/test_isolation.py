"""Causality and isolation by gradients: exactly zero where nothing may flow, not zero where it must."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lclm_jax.data.chat import render_chat
from lclm_jax.data.packing import Budget, Row, assemble
from lclm_jax.data.spans import Context, Plain, lay_out
from lclm_jax.model.lclm import LCLM, latent_places, place
from lclm_jax.model.masks import Places, attention_mask

CHAT_ROW = 1


def pack(rows, config, tokenizer, positions=64, windows=2):
    """A batch whose rows hold the given records, one list of records a row."""
    filled = []
    for records in rows:
        row = Row(Budget(positions, windows, config.window_length, config.compression.latents_per_window))
        for record in records:
            example = lay_out(record, config, tokenizer.memory)
            seats = row.find(example)
            assert seats is not None
            row.add(example, seats)
        filled.append(row)
    return assemble(filled)


@pytest.fixture(scope="module")
def records(tokenizer):
    """Two examples for one row, and a chat whose assistant reads a context in the middle of its answer."""
    rng = np.random.default_rng(0)

    def tokens(n):
        return rng.integers(0, 256, n).astype(np.int32)

    first = [Plain(tokens(3)), Context(tokens(9)), Plain(tokens(4), True), Context(tokens(6)), Plain(tokens(5), True)]
    second = [Context(tokens(7)), Plain(tokens(6), True)]
    answer = [tokens(5), Context(tokens(10)), tokens(4)]
    chat = [{"role": "user", "content": [Context(tokens(5)), tokens(3)]}, {"role": "assistant", "content": answer}]
    return [[first, second], [render_chat(chat, tokenizer)]]


@pytest.fixture(scope="module")
def batch(records, model_config, tokenizer):
    return pack(records, model_config, tokenizer)


@pytest.fixture(scope="module")
def noisy(params):
    """Residual branches start at zero; with noise on every parameter, what may flow between positions does."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: np.asarray(x) + 0.1 * rng.normal(size=x.shape).astype(np.float32), params)


@pytest.fixture(scope="module")
def flow(model_config, noisy, batch):
    """What the hidden state of each position [B T] depends on: decoder inputs [B T B T], encoder inputs [B T B C W]."""
    model = LCLM(model_config)
    windows = batch.windows

    @jax.jit
    def influence(row, query):
        def probe(decoder_noise, encoder_noise):
            def run(m):
                places = Places(*(x.reshape(-1, x.shape[-1]) for x in (windows.segments, windows.positions)))
                read, _ = m.encoder(m.encoder.embed(windows.tokens.reshape(places.segments.shape)) + encoder_noise, places)
                latents = m.project(m.pool(read.reshape(*windows.tokens.shape, -1), windows), latent_places(windows))
                x = place(m.decoder.embed(batch.tokens) + decoder_noise, latents, batch.slots)
                return m.decoder(x, Places(batch.segments, batch.positions))[0]

            hidden = model.apply({"params": noisy}, method=run)
            return jnp.dot(hidden[row, query], jax.random.normal(jax.random.key(0), hidden.shape[-1:]))

        decoder = jnp.zeros((*batch.tokens.shape, model_config.decoder.width))
        encoder = jnp.zeros((windows.tokens[..., 0].size, windows.tokens.shape[-1], model_config.encoder.width))
        by_decoder, by_encoder = jax.grad(probe, argnums=(0, 1))(decoder, encoder)
        return jnp.abs(by_decoder).sum(-1) > 0, (jnp.abs(by_encoder).sum(-1) > 0).reshape(windows.tokens.shape)

    by_decoder = np.zeros(2 * batch.tokens.shape, bool)
    by_encoder = np.zeros(batch.tokens.shape + windows.tokens.shape, bool)
    for row, query in np.argwhere(batch.segments > 0):
        by_decoder[row, query], by_encoder[row, query] = influence(row, query)
    return by_decoder, by_encoder


def test_decoder_sees_its_own_past_and_nothing_else(flow, batch):
    by_decoder, _ = flow
    for row, query in np.argwhere(batch.segments > 0):
        visible = np.zeros(batch.tokens.shape, bool)
        visible[row, : query + 1] = batch.segments[row, : query + 1] == batch.segments[row, query]
        visible &= batch.slots < 0  # a slot's own token is replaced by its latent
        np.testing.assert_array_equal(by_decoder[row, query], visible, f"row {row}, query {query}")


def test_context_reaches_only_what_follows_its_slots(flow, batch, model_config):
    _, by_encoder = flow
    p = model_config.compression.latents_per_window
    groups, segments = batch.windows.groups, batch.windows.segments
    for row, query in np.argwhere(batch.segments > 0):
        past = slice(query + 1)
        read = set(batch.slots[row, past][batch.segments[row, past] == batch.segments[row, query]]) - {-1}
        expected = np.zeros(groups.shape, bool)
        for window, position in np.argwhere(segments[row] > 0):
            # Causal encoder: a token reaches its own latent and the later ones of its piece.
            later = segments[row, window, position:] == segments[row, window, position]
            reached = window * p + groups[row, window, position:][later]
            expected[row, window, position] = bool(read & set(reached))
        np.testing.assert_array_equal(by_encoder[row, query], expected, f"row {row}, query {query}")


def test_context_inside_an_assistant_turn_is_causal(flow, batch, model_config):
    """The answer before the context is trained on and must not know it; the answer after it must."""
    reaches = flow[1][CHAT_ROW, :, CHAT_ROW]  # [T C W]
    weights, slots, groups = batch.weights[CHAT_ROW], batch.slots[CHAT_ROW], batch.windows.groups[CHAT_ROW]
    first, *_, last = inner = np.flatnonzero(slots >= 0)[2:]  # two latents before are the user's context of five tokens
    before, after = np.flatnonzero(weights[:first]), last + np.flatnonzero(weights[last:])
    assert len(before) == 5 and len(after) == 5, "five tokens, then four and the end of the turn"
    latents = groups + model_config.compression.latents_per_window * np.arange(len(groups))[:, None]
    own = np.isin(latents, slots[inner]) & (groups >= 0)
    assert own.sum() == 10
    assert not reaches[:first, own].any()
    assert reaches[after][:, own].all()


def test_memory_positions_carry_no_loss(batch, tokenizer):
    memory = tokenizer.memory
    assert not batch.weights[np.isin(batch.targets, (memory.start, memory.end, memory.slot))].any()


def test_bidirectional_encoder_keeps_contexts_of_one_window_apart(model_config, noisy, batch):
    config = replace(model_config, encoder=replace(model_config.encoder, causal=False))
    row, window = np.argwhere(batch.windows.segments > 1)[0, :2]
    shared = jax.tree.map(lambda x: x[row, window][None], batch.windows)
    segments, places = shared.segments[0], Places(shared.segments, shared.positions)

    @jax.jit
    def influence(query):
        def probe(noise):
            def run(m):
                return m.encoder(m.encoder.embed(shared.tokens) + noise, places)[0]

            hidden = LCLM(config).apply({"params": noisy}, method=run)
            return jnp.dot(hidden[0, query], jax.random.normal(jax.random.key(0), hidden.shape[-1:]))

        gradient = jax.grad(probe)(jnp.zeros((*shared.tokens.shape, config.encoder.width)))
        return jnp.abs(gradient[0]).sum(-1) > 0

    for query in np.flatnonzero(segments):
        np.testing.assert_array_equal(influence(query), segments == segments[query], f"query {query}")


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


def test_packed_equals_alone(model_config, noisy, tokenizer, records, batch):
    forward = jax.jit(lambda batch: LCLM(model_config).apply({"params": noisy}, batch))
    together = forward(batch)[0]
    start = 0
    for record in records[0]:
        alone = pack([[record], []], model_config, tokenizer)
        length = int((alone.segments > 0).sum())
        np.testing.assert_allclose(together[start : start + length], forward(alone)[0, :length], atol=1e-5)
        start += length
