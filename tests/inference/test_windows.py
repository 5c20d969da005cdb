"""Latents depend on a context and its ratio, never on where its windows lie or on what shares them.

Packing, padding on any side, and ratios mixed in one row are compared with each context alone, in a
row of its own, for every kind of pooling, encoder and adapter.
"""

from dataclasses import replace
from functools import cache, partial

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lclm_jax.batch import empty_windows
from lclm_jax.config import (
    AdapterConfig,
    CompressionConfig,
    ConfigError,
    ModelConfig,
    TransformerConfig,
)
from lclm_jax.data.loading import RowBudget, StageData, assemble, fill_row, write_piece
from lclm_jax.data.loading.packing import PieceOffset
from lclm_jax.data.recipe.transforms import draw_ratios
from lclm_jax.data.records import Context, Plain, count_latents, lay_out, split_windows
from lclm_jax.distributed.sharding import one_device
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.inference.sampling import Sampling
from lclm_jax.model.lclm import LCLM, apply
from lclm_jax.model.params import abstract_params

VOCAB, MARKER = 512, 500
ENCODER = TransformerConfig(VOCAB, width=16, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=32)
DECODER = TransformerConfig(VOCAB, width=24, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=32)
PIECES, SHARED = (
    4,
    3,
)  # most windows of a context; contexts of an example, and pieces that share a window


def model(
    pooling="mean", causal=True, ratio=4, ratios=(), window=8, overlap=0, adapter="mlp"
) -> ModelConfig:
    compression = CompressionConfig(ratio, window, pooling, overlap, ratios)
    encoder = replace(ENCODER, causal=causal)
    return ModelConfig(
        encoder, DECODER, compression, AdapterConfig(adapter), dtype="float32", remat="none"
    )


CASES = {
    "mean, causal, ratios": model("mean", True, ratios=(2, 8)),
    "mean, both ways, ratios, overlap": model("mean", False, ratios=(2, 8), overlap=3),
    "mean, both ways, ratios, attention after": model(
        "mean", False, ratios=(2, 8), overlap=1, adapter="mlp_attn"
    ),
    "mean, causal, window of one latent, attention before": model(
        "mean", True, ratio=8, overlap=2, adapter="attn_mlp"
    ),
    "eos, causal, ratios, overlap": model("eos", True, ratios=(2, 8), overlap=3),
    "eos, both ways, overlap wider than the window": model(
        "eos", False, ratio=8, overlap=11, adapter="mlp_attn"
    ),
    "eos, both ways, ratios, attention before": model(
        "eos", False, ratios=(2, 8), adapter="attn_mlp"
    ),
    "concat, causal, overlap wider than the window": model("concat", True, overlap=11),
    "concat, both ways, window of one latent": model(
        "concat", False, ratio=8, overlap=3, adapter="mlp_attn"
    ),
    "concat, both ways, attention before": model("concat", False, overlap=3, adapter="attn_mlp"),
}
every_case = pytest.mark.parametrize("config", CASES.values(), ids=CASES)


@cache
def noise(config: ModelConfig):
    """Parameters without a zero: fresh residual branches are zero and would hide their inputs."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        values = rng.normal(size=leaf.shape).astype(np.float32)
        return 1 + 0.1 * values if path[-1].key == "scale" else 0.2 * values

    return jax.tree_util.tree_map_with_path(draw, abstract_params(config, one_device()))


@partial(jax.jit, static_argnames="config")
def compress(params, windows, config):
    return apply(config, params, windows, method=LCLM.compress)[0]


def read(config, offsets, shape, params=None):
    """Latents of every context in a row of this shape: windows, and positions and latents of each.

    Offsets are (number of the context, piece, window, first position, first latent), in the order
    of the pieces of the context.
    """
    windows, segments, own = empty_windows(1, *shape), np.zeros(shape[0], int), {}
    for number, piece, window, position, latent in offsets:
        segments[window] += 1
        offset = PieceOffset(window, position, latent)
        write_piece(windows, 0, offset, piece, segments[window], number + 1)
        own.setdefault(number, []).extend(window * shape[2] + latent + np.arange(piece.latents))
    latents = np.asarray(compress(noise(config) if params is None else params, windows, config))
    return [latents[own[number]] for number in sorted(own)]


def alone(config, context, params=None):
    """Latents of a context alone in a row, each window at the start of one.

    The row is written by hand.
    """
    pieces, room = split_windows(context, config, MARKER), config.compression.latents_per_window
    windows, first = empty_windows(1, PIECES, config.window_length, room), 0
    for i, piece in enumerate(pieces):
        read, own = slice(len(piece.tokens)), slice(piece.latents)
        windows.tokens[0, i, read], windows.segments[0, i, read] = piece.tokens, 1
        windows.positions[0, i, read], windows.groups[0, i, read] = (
            np.arange(len(piece.tokens)),
            piece.groups,
        )
        windows.latent_segments[0, i, own], windows.latent_positions[0, i, own] = (
            1,
            first + np.arange(piece.latents),
        )
        first += piece.latents
    assert first == count_latents(len(context.tokens), config, context.ratio)
    latents = np.asarray(
        compress(noise(config) if params is None else params, windows, config)
    ).reshape(PIECES, room, -1)
    return np.concatenate([latents[i, : piece.latents] for i, piece in enumerate(pieces)])


def starts(sizes, room, padding, rng):
    """Offsets of parts of these sizes: padding before them, after them, or between them."""
    spare = room - sum(sizes)
    before = (
        np.sort(rng.integers(0, spare + 1, len(sizes)))
        if padding == "between"
        else spare * (padding == "left")
    )
    return before + np.cumsum([0, *sizes[:-1]]).astype(int)


def shuffled_seats(config, contexts, shape, padding, rng):
    """Seats for all pieces of all contexts in windows they share at random, in any order."""
    pieces = [
        (n, piece)
        for n, context in enumerate(contexts)
        for piece in split_windows(context, config, MARKER)
    ]
    of = rng.permutation(np.repeat(np.arange(shape[0]), SHARED))[: len(pieces)]
    offsets: list = [None] * len(pieces)
    for window in range(shape[0]):
        here = rng.permutation(np.flatnonzero(of == window))
        if len(here):
            positions = starts([len(pieces[i][1].tokens) for i in here], shape[1], padding, rng)
            latents = starts([pieces[i][1].latents for i in here], shape[2], padding, rng)
            for i, position, latent in zip(here, positions, latents, strict=True):
                offsets[i] = (*pieces[i], window, position, latent)
    return offsets


def contexts_of(config, lengths, rng):
    """Contexts of these lengths, each at one of the model's ratios."""
    ratios = rng.choice(config.compression.all_ratios, len(lengths))
    return [
        Context(rng.integers(0, VOCAB, n).astype(np.int32), int(ratio))
        for n, ratio in zip(lengths, ratios, strict=True)
    ]


@every_case
@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(
        st.sampled_from([0, 1, 7, 8, 9, 16, 24, 32]) | st.integers(0, 32),
        min_size=SHARED,
        max_size=SHARED,
    ),
    padding=st.sampled_from(["left", "right", "between"]),
    seed=st.integers(0, 999),
)
def test_sharing_and_padding_windows_changes_nothing(config, lengths, padding, seed):
    rng = np.random.default_rng(seed)
    contexts = contexts_of(config, lengths, rng)
    shape = (PIECES, SHARED * config.window_length, SHARED * config.compression.latents_per_window)
    together = read(config, shuffled_seats(config, contexts, shape, padding, rng), shape)
    for context, latents in zip(contexts, together, strict=True):
        np.testing.assert_allclose(latents, alone(config, context), rtol=1e-5, atol=1e-5)


@every_case
def test_a_filled_window_equals_a_padded_one(config):
    """The middle window of three, or of five whose neighbours reach further, leaves no room."""
    rng, sides = (
        np.random.default_rng(0),
        -(-config.compression.overlap // config.compression.window),
    )
    tokens = rng.integers(0, VOCAB, (1 + 2 * max(1, sides)) * config.compression.window).astype(
        np.int32
    )
    pieces = split_windows(Context(tokens, min(config.compression.all_ratios)), config, MARKER)
    piece = replace(pieces[len(pieces) // 2], first=0)
    filled, room = config.window_length, config.compression.latents_per_window
    assert (len(piece.tokens), piece.latents) == (filled, room)
    (expected,) = read(config, [(0, piece, 1, 0, 0)], (PIECES, filled, room))
    for position, latent in ((0, 0), (3, 1), (2 * filled, 2 * room)):
        (padded,) = read(
            config, [(0, piece, 1, position, latent)], (PIECES, SHARED * filled, SHARED * room)
        )
        np.testing.assert_allclose(padded, expected, atol=1e-5)


@every_case
def test_the_latents_compared_here_tell_contexts_apart(config):
    """Agreement to 1e-5 is strict: another first or last token moves latents 1000 times more."""
    context = contexts_of(config, [27], np.random.default_rng(0))[0]
    expected = alone(config, context)
    for changed, latent in ((0, 0), (26, -1)):
        tokens = context.tokens.copy()
        tokens[changed] = (tokens[changed] + 1) % VOCAB
        assert (
            np.abs(alone(config, replace(context, tokens=tokens))[latent] - expected[latent]).max()
            > 1e-2
        )


# Ratios


RATIOS = (2, 4, 8, 16, 32)
MIXED = {
    kind: model(ratio=16, ratios=RATIOS, window=32, adapter=kind)
    for kind in ("mlp", "mlp_attn", "attn_mlp")
}


def fixed(config: ModelConfig, ratio: int) -> ModelConfig:
    """The same model at one ratio; it has the same parameters."""
    return replace(config, compression=replace(config.compression, ratio=ratio, ratios=()))


def pack(records, config, tokenizer, positions=160, windows=12):
    examples = [lay_out(record, config, tokenizer.memory) for record in records]
    return assemble([fill_row(RowBudget.for_model(config, positions, windows), examples)])


def latents_in_order(batch, config):
    """The latents of a batch of one row, in the order of the slots that read them."""
    slots = batch.slots[0]
    return np.asarray(compress(noise(config), batch.windows, config))[slots[slots >= 0]]


@pytest.fixture(scope="module")
def mixed():
    """Contexts of every ratio: several windows, one empty, one without latents.

    No ratio divides their lengths.
    """
    rng = np.random.default_rng(0)
    lengths = (37, 33, 70, 61, 97, 5, 0, 19)
    return [
        Context(rng.integers(0, VOCAB, n).astype(np.int32), ratio)
        for n, ratio in zip(lengths, (2, 4, 8, 16, 32, 2, 8, None), strict=True)
    ]


def each_alone(contexts, config):
    """Latents of each context from the model of its ratio, which knows no other."""
    return [
        alone(fixed(config, c.ratio or 16), replace(c, ratio=None), noise(config)) for c in contexts
    ]


@pytest.mark.parametrize("config", MIXED.values(), ids=MIXED)
@pytest.mark.parametrize(
    "examples", [1, 2, 8], ids=["one prompt", "two examples", "an example each"]
)
def test_mixed_ratios_in_a_row_equal_each_context_alone(config, examples, mixed, tokenizer):
    text = Plain(np.arange(2, dtype=np.int32), True)
    records = [
        [span for i in part for span in (mixed[i], text)]
        for part in np.array_split(np.arange(len(mixed)), examples)
    ]
    batch = pack(records, config, tokenizer)
    assert batch.windows.segments.max() > 2, "contexts share windows"
    np.testing.assert_allclose(
        latents_in_order(batch, config), np.concatenate(each_alone(mixed, config)), atol=1e-5
    )


@pytest.mark.parametrize("ratio", [2, 32])
def test_one_ratio_throughout_equals_the_model_of_that_ratio(ratio, mixed, tokenizer):
    """The whole model, on everything the decoder reads."""
    config, text = MIXED["mlp_attn"], Plain(np.arange(2, dtype=np.int32), True)
    forward = jax.jit(
        lambda batch, config: apply(config, noise(MIXED["mlp_attn"]), batch),
        static_argnames="config",
    )
    asked = [[span for context in mixed[:3] for span in (replace(context, ratio=ratio), text)]]
    plain = [[span for context in mixed[:3] for span in (replace(context, ratio=None), text)]]
    mixed_ratio, fixed_ratio = (
        pack(asked, config, tokenizer),
        pack(plain, fixed(config, ratio), tokenizer),
    )
    np.testing.assert_array_equal(mixed_ratio.tokens, fixed_ratio.tokens)
    np.testing.assert_allclose(
        forward(mixed_ratio, config), forward(fixed_ratio, fixed(config, ratio)), atol=1e-5
    )
    if config.compression.latents_per_window == fixed(config, ratio).compression.latents_per_window:
        np.testing.assert_array_equal(
            forward(mixed_ratio, config), forward(fixed_ratio, fixed(config, ratio))
        )


TEXT = "Ada likes pears, Ben likes figs and Cy likes plums; nobody likes rain. " * 3


@pytest.mark.parametrize("kind", ["mlp", "mlp_attn"])
def test_a_text_compressed_at_a_ratio_equals_the_model_of_that_ratio(kind, tokenizer):
    config = MIXED[kind]
    loaded = LanguageModel(config, noise(config), tokenizer)
    counts = []
    for ratio in (2, 32, None):
        other = LanguageModel(fixed(config, ratio or 16), noise(config), tokenizer)
        mixed_ratio, fixed_ratio = loaded.compress(TEXT, ratio=ratio), other.compress(TEXT)
        np.testing.assert_allclose(mixed_ratio.vectors, fixed_ratio.vectors, atol=5e-6)
        assert mixed_ratio.tokens == fixed_ratio.tokens > 64, "several windows"
        counts.append(len(mixed_ratio))
    assert counts[0] > counts[2] > counts[1]


def test_a_prompt_of_mixed_ratios_is_answered_as_from_latents_of_each_model(tokenizer):
    config, question = MIXED["mlp_attn"], " Who likes figs?"
    loaded = LanguageModel(config, noise(config), tokenizer)
    contexts = [
        Context(tokenizer.encode(TEXT[start:]), ratio) for start, ratio in enumerate((2, 32, None))
    ]
    latents = []
    for context in contexts:
        other = LanguageModel(fixed(config, context.ratio or 16), noise(config), tokenizer)
        latents.append(other.compress_tokens(context.tokens))
    say = partial(loaded.complete, max_tokens=24, sampling=Sampling(temperature=0.3), seed=0)
    answer = say([*contexts, question])
    assert answer == say([*latents, question])
    assert answer != say([*latents[::-1], question]), "the answer depends on the latents"


def test_a_ratio_the_model_does_not_have_is_refused_by_name(tokenizer):
    config = MIXED["mlp"]
    loaded = LanguageModel(config, noise(config), tokenizer)
    message = r"ratio 16, 2, 4, 8, 32, got ratio=3; .* compression\.ratios"
    with pytest.raises(ConfigError, match=message):
        loaded.compress(TEXT, ratio=3)
    with pytest.raises(ConfigError, match=message):
        lay_out([Context(np.arange(9), 3)], config, tokenizer.memory)
    with pytest.raises(ConfigError, match=r"ratio 8, got ratio=16; .* compression\.ratios"):
        split_windows(Context(np.arange(9), 16), fixed(config, 8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "concat", "ratios": (2,)}, "concat pooling has one ratio, got ratio=4"),
        ({"ratios": (2, 5)}, "window=8, ratio=5; set compression.window=10"),
        ({"ratios": (16,)}, "window=8, ratio=16; set compression.window=16"),
        ({"ratios": (0,)}, r"ratios\.0 must be an integer, from 1 to .*got 0"),
    ],
)
def test_ratios_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        CompressionConfig(ratio=4, window=8, **settings)


def test_drawn_ratios_are_all_of_the_models_and_only_for_contexts_that_ask_for_none():
    rng, tokens = np.random.default_rng(0), np.arange(3)
    record = [Plain(tokens, True), Context(tokens), Context(tokens, 8), *[Context(tokens)] * 3000]
    compression = CompressionConfig(ratio=4, window=8, ratios=(2, 8))
    drawn = draw_ratios(record, rng, compression)
    assert drawn[0] is record[0] and drawn[2] is record[2]
    assert all(span.ratio is None for span in record[3:]), "the record stays as it was"
    assert all(span.tokens is tokens for span in drawn)
    ratios, counts = np.unique([span.ratio for span in drawn[3:]], return_counts=True)
    assert ratios.tolist() == [2, 4, 8] and (abs(counts - 1000) < 150).all()


def test_a_model_of_one_ratio_draws_nothing():
    rng, record = (
        np.random.default_rng(0),
        [Plain(np.arange(3)), Context(np.arange(3)), Context(np.arange(3), 4)],
    )
    before = rng.bit_generator.state
    drawn = draw_ratios(record, rng, CompressionConfig(ratio=4, window=8))
    assert all(span is other for span, other in zip(drawn, record, strict=True))
    assert rng.bit_generator.state == before, "examples of earlier runs stay the same"


def test_training_examples_have_every_ratio(config, tokenizer):
    several = replace(
        config,
        model=replace(config.model, compression=replace(config.model.compression, ratios=(2, 8))),
    )

    def ratios(config):
        examples = StageData(config, config.stages[0], tokenizer).mix_streams().examples
        pieces = [
            piece for i in range(40) for piece in examples[i].pieces if len(piece.tokens) == 16
        ]
        return {len(piece.tokens) // piece.latents for piece in pieces}

    assert (ratios(config), ratios(several)) == ({4}, {2, 4, 8})


# Blocks of latents on the device


def test_windows_share_blocks_so_that_chunks_read_as_many_latents_at_every_ratio(tokenizer):
    config = model(ratio=8, ratios=(2, 4, 8), window=16)
    several = LanguageModel(config, noise(config), tokenizer)
    tokens = np.arange(150, dtype=np.int32)
    for ratio in (2, 4, 8):
        single = LanguageModel(fixed(config, ratio), several.weights, tokenizer)
        (latents,) = several.compress_all([Context(tokens, ratio)])
        (expected,) = single.compress_all([Context(tokens)])
        np.testing.assert_allclose(latents.vectors, expected.vectors, atol=1e-6)

        size = config.compression.latents_per_window
        blocks = {id(part.block) for part in latents.slices(size, config.dtype)}
        per_block = size // (16 // ratio) * (16 // ratio)
        assert len(blocks) == -(-len(latents) // per_block)

    contexts = [Context(tokens[:count], 8) for count in (40, 3, 150, 17)]
    together = several.compress_all(contexts)
    for context, latents in zip(contexts, together, strict=True):
        (expected,) = several.compress_all([context])
        np.testing.assert_allclose(latents.vectors, expected.vectors, atol=1e-5)
