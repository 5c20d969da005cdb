"""Causality and isolation by gradients: zero where nothing may flow, not zero where it must."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lclm_jax.batch import Places
from lclm_jax.config import AdapterConfig, CompressionConfig, ModelConfig
from lclm_jax.data.chat.chat import build_chat_record
from lclm_jax.data.loading import RowBudget, assemble, fill_row
from lclm_jax.data.records import Context, Plain, lay_out
from lclm_jax.model.lclm import LCLM, latent_places, place
from lclm_jax.model.masks import attention_mask
from lclm_jax.model.params import abstract_params, init_params
from tests.support.records import with_noise

CHAT_ROW = 1


def pack(rows, config, tokenizer, positions=64, windows=2):
    """Return a batch with one row for each list of records."""
    budget = RowBudget.for_model(config, positions, windows)
    return assemble(
        [
            fill_row(budget, [lay_out(record, config, tokenizer.memory) for record in records])
            for records in rows
        ]
    )


@pytest.fixture(scope="module")
def records(tokenizer):
    """Return two examples for one row, and a chat with a context in the middle of an answer."""
    rng = np.random.default_rng(0)

    def tokens(n):
        return rng.integers(0, 256, n).astype(np.int32)

    first = [
        Plain(tokens(3)),
        Context(tokens(9)),
        Plain(tokens(4), True),
        Context(tokens(6)),
        Plain(tokens(5), True),
    ]
    second = [Context(tokens(7)), Plain(tokens(6), True)]
    answer = [tokens(5), Context(tokens(10)), tokens(4)]
    chat = [
        {"role": "user", "content": [Context(tokens(5)), tokens(3)]},
        {"role": "assistant", "content": answer},
    ]
    return [[first, second], [build_chat_record(chat, tokenizer)]]


@pytest.fixture(scope="module")
def batch(records, model_config, tokenizer):
    return pack(records, model_config, tokenizer)


def change(config: ModelConfig, adapter="mlp", causal=True, qk_norm=True) -> ModelConfig:
    encoder = replace(config.encoder, causal=causal, qk_norm=qk_norm)
    return replace(
        config,
        encoder=encoder,
        decoder=replace(config.decoder, qk_norm=qk_norm),
        adapter=AdapterConfig(adapter),
    )


def read_windows(m, windows, noise):
    """Return the latents of windows, with noise [A W E] on the encoder's input."""
    places = Places(*(x.reshape(-1, x.shape[-1]) for x in (windows.segments, windows.positions)))
    read, _ = m.encoder(
        m.encoder.embed(windows.tokens.reshape(places.segments.shape)) + noise, places
    )
    return m.project(
        m.pool(read.reshape(*windows.tokens.shape, -1), windows), latent_places(windows)
    )


def no_noise(windows, config):
    return jnp.zeros((windows.tokens[..., 0].size, windows.tokens.shape[-1], config.encoder.width))


def probe_of(hidden):
    return jax.random.normal(jax.random.key(0), hidden.shape[-1:])


VARIANTS = {
    "as published": {},
    "attention after the MLP": {"adapter": "mlp_attn"},
    "attention before the MLP": {"adapter": "attn_mlp"},
    "no qk_norm": {"qk_norm": False},
}


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS)
def variant(request, model_config):
    return change(model_config, **request.param)


@pytest.fixture(scope="module")
def flow(variant, one_device, batch):
    """Return the inputs that the hidden state of each position [B T] depends on.

    They are marked among the decoder's [B T B T] and the encoder's [B T B C W].
    """
    model, noisy = LCLM(variant), with_noise(init_params(variant, one_device, seed=0))
    windows = batch.windows

    @jax.jit
    def influence(row, query):
        def probe(decoder_noise, encoder_noise):
            def run(m):
                x = place(
                    m.decoder.embed(batch.tokens) + decoder_noise,
                    read_windows(m, windows, encoder_noise),
                    batch.slots,
                )
                return m.decoder(x, Places(batch.segments, batch.positions))[0]

            hidden = model.apply({"params": noisy}, method=run)
            return jnp.dot(hidden[row, query], probe_of(hidden))

        decoder = jnp.zeros((*batch.tokens.shape, variant.decoder.width))
        by_decoder, by_encoder = jax.grad(probe, argnums=(0, 1))(
            decoder, no_noise(windows, variant)
        )
        return jnp.abs(by_decoder).sum(-1) > 0, (jnp.abs(by_encoder).sum(-1) > 0).reshape(
            windows.tokens.shape
        )

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


def test_context_reaches_only_what_follows_its_slots(flow, batch, variant):
    _, by_encoder = flow
    p = variant.compression.latents_per_window
    groups, segments, contexts = (
        batch.windows.groups,
        batch.windows.segments,
        batch.windows.latent_segments,
    )
    for row, query in np.argwhere(batch.segments > 0):
        past = slice(query + 1)
        read = set(
            batch.slots[row, past][batch.segments[row, past] == batch.segments[row, query]]
        ) - {-1}
        expected = np.zeros(groups.shape, bool)
        for window, position in np.argwhere(segments[row] > 0):
            # Causal encoder: a token reaches its own latent and the later ones of its piece.
            later = segments[row, window, position:] == segments[row, window, position]
            reached = window * p + groups[row, window, position:][later]
            if variant.adapter.attention:  # and through them every latent of its context
                reached = np.flatnonzero(contexts[row].ravel() == contexts[row].ravel()[reached[0]])
            expected[row, window, position] = bool(read & set(reached))
        np.testing.assert_array_equal(by_encoder[row, query], expected, f"row {row}, query {query}")


def test_context_inside_an_assistant_turn_is_causal(flow, batch, model_config):
    """The answer before the context is trained on and must not depend on it, the rest must."""
    reaches = flow[1][CHAT_ROW, :, CHAT_ROW]  # [T C W]
    weights, slots, groups = (
        batch.weights[CHAT_ROW],
        batch.slots[CHAT_ROW],
        batch.windows.groups[CHAT_ROW],
    )
    first, *_, last = inner = np.flatnonzero(slots >= 0)[
        2:
    ]  # two latents before are the user's context of five tokens
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


def test_without_qk_norm_the_towers_have_no_such_parameters(model_config, one_device):
    """The adapter's attention is a whole Qwen3 layer in every model."""

    def normed(qk_norm):
        paths = jax.tree.leaves_with_path(
            abstract_params(change(model_config, "mlp_attn", qk_norm=qk_norm), one_device)
        )
        return {path[0].key for path, _ in paths if path[-2].key in ("q_norm", "k_norm")}

    assert normed(True) == {"encoder", "adapter", "decoder"}
    assert normed(False) == {"adapter"}


@pytest.fixture(scope="module")
def long_batch(model_config, tokenizer):
    """Return two rows of three windows; in the first, three contexts share the last window."""
    rng = np.random.default_rng(1)

    def tokens(n):
        return rng.integers(0, 256, n).astype(np.int32)

    first = [Context(tokens(37)), Plain(tokens(2), True), Context(tokens(4))]
    second, other = (
        [Context(tokens(3)), Plain(tokens(2), True)],
        [Context(tokens(21)), Plain(tokens(2), True)],
    )
    batch = pack([[first, second], [other]], model_config, tokenizer, windows=3)
    assert batch.windows.segments.max(axis=-1).tolist() == [[1, 1, 3], [1, 1, 0]]
    return batch


def latent_flow(config, params, windows):
    """Return the encoder inputs that each latent [B M] depends on, as marks [B M B C W]."""

    @jax.jit
    def influence(row, latent):
        def probe(noise):
            latents = LCLM(config).apply({"params": params}, windows, noise, method=read_windows)
            return jnp.dot(latents[row, latent], probe_of(latents))

        return (jnp.abs(jax.grad(probe)(no_noise(windows, config))).sum(-1) > 0).reshape(
            windows.tokens.shape
        )

    contexts = windows.latent_segments.reshape(len(windows.tokens), -1)
    flow = np.zeros(contexts.shape + windows.tokens.shape, bool)
    for row, latent in np.argwhere(contexts > 0):
        flow[row, latent] = influence(row, latent)
    return flow


def context_of_tokens(windows):
    """Return the context that each token is pooled for [B C W], counted per row; 0 is none."""
    owner = np.take_along_axis(windows.latent_segments, np.maximum(windows.groups, 0), axis=-1)
    return np.where(windows.groups >= 0, owner, 0)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both ways"])
@pytest.mark.parametrize("adapter", ["mlp_attn", "attn_mlp"])
def test_adapter_attention_joins_all_of_a_context_and_nothing_else(
    adapter, causal, model_config, one_device, long_batch
):
    """Latents depend on all tokens of their context, in any window, and on no others."""
    config, windows = change(model_config, adapter, causal), long_batch.windows
    flow = latent_flow(config, with_noise(init_params(config, one_device, seed=0)), windows)
    tokens, latents = (
        context_of_tokens(windows),
        windows.latent_segments.reshape(len(windows.tokens), -1),
    )
    for row, latent in np.argwhere(latents > 0):
        expected = np.zeros(tokens.shape, bool)
        expected[row] = tokens[row] == latents[row, latent]
        assert expected.sum() in (37, 4, 3, 21)
        np.testing.assert_array_equal(flow[row, latent], expected, f"row {row}, latent {latent}")


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both ways"])
def test_without_adapter_attention_windows_of_a_context_stay_apart(
    causal, model_config, noisy, long_batch
):
    config, windows = change(model_config, causal=causal), long_batch.windows
    flow, p = latent_flow(config, noisy, windows), config.compression.latents_per_window
    tokens, latents = context_of_tokens(windows), windows.latent_segments
    for row, window, latent in np.argwhere(latents > 0):
        expected = np.zeros(tokens.shape, bool)
        read = tokens[row, window] == latents[row, window, latent]
        expected[row, window] = read & ((windows.groups[row, window] <= latent) | (not causal))
        np.testing.assert_array_equal(
            flow[row, window * p + latent], expected, f"row {row}, window {window}, latent {latent}"
        )


@pytest.fixture(scope="module")
def overlapping(model_config, tokenizer):
    """Return a window with two overlapping pieces of one context, and another context."""
    config = replace(
        model_config, compression=CompressionConfig(ratio=4, window=16, overlap=4, ratios=(8,))
    )
    config = change(config, causal=False)
    tokens = np.arange(100, 119, dtype=np.int32)
    batch = pack(
        [[[Context(tokens[:17], 8), Plain(tokens[:2], True), Context(tokens[17:])]]],
        config,
        tokenizer,
        windows=1,
    )
    sizes = np.unique(batch.windows.segments, return_counts=True)
    assert [x.tolist() for x in sizes] == [[1, 2, 3], [17, 5, 2]], (
        "16 tokens and 1 behind; 4 before and 1; 2"
    )
    return batch.windows


def encoder_flow(config, params, tokens, places):
    """Return which positions of a window each of them depends on, as marks [W W]."""

    @jax.jit
    def influence(query):
        def probe(noise):
            hidden = LCLM(config).apply(
                {"params": params},
                method=lambda m: m.encoder(m.encoder.embed(tokens) + noise, places)[0],
            )
            return jnp.dot(hidden[0, query], probe_of(hidden))

        return (
            jnp.abs(jax.grad(probe)(jnp.zeros((*tokens.shape, config.encoder.width)))[0]).sum(-1)
            > 0
        )

    return np.array([influence(query) for query in range(tokens.shape[1])])


@pytest.mark.parametrize("overlap", [False, True], ids=["contexts", "pieces that overlap"])
def test_bidirectional_encoder_keeps_what_shares_a_window_apart(
    overlap, model_config, noisy, batch, overlapping
):
    windows = overlapping if overlap else batch.windows
    row, window = np.argwhere(windows.segments > 1)[0, :2]
    tokens, segments, positions = (
        x[row, window][None] for x in (windows.tokens, windows.segments, windows.positions)
    )
    flow = encoder_flow(
        change(model_config, causal=False), noisy, tokens, Places(segments, positions)
    )
    for query in np.flatnonzero(segments[0]):
        np.testing.assert_array_equal(
            flow[query], segments[0] == segments[0, query], f"query {query}"
        )


def test_latents_see_the_overlap_of_their_own_piece_alone(model_config, noisy, overlapping):
    """A latent depends on the neighbours in its own piece, not on copies in another piece."""
    config = replace(
        change(model_config, causal=False),
        compression=CompressionConfig(4, 16, overlap=4, ratios=(8,)),
    )
    flow = latent_flow(config, noisy, overlapping)
    segments, groups = overlapping.segments[0, 0], overlapping.groups[0, 0]
    for latent in range(4):
        (piece,) = set(segments[groups == latent])
        np.testing.assert_array_equal(flow[0, latent, 0, 0], segments == piece, f"latent {latent}")


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
        np.testing.assert_allclose(
            together[start : start + length], forward(alone)[0, :length], atol=1e-5
        )
        start += length
