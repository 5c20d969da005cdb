"""Parts of the model against plain numpy, and properties of the whole.

Those are windows that contexts share, rematerialisation, logical axes and sizes.
"""

from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import ClosedJaxpr, Jaxpr

from configs.lclm_0p6b_4b_16x import config as published_config
from configs.models.shapes import SHAPES
from lclm_jax.batch import Places, empty_windows
from lclm_jax.capacity.flops import matmul_flops
from lclm_jax.distributed.sharding import RULES
from lclm_jax.model.attention import Cache, attend, attend_after
from lclm_jax.model.layers import RMSNorm, rotate
from lclm_jax.model.lclm import LCLM, place
from lclm_jax.model.loss import cross_entropy
from lclm_jax.model.masks import attention_mask
from lclm_jax.model.params import abstract_params, init_boxed
from lclm_jax.model.pooling import membership, pool_concat, pool_mean
from lclm_jax.model.transformer import Transformer

pytestmark = pytest.mark.image

HIDDEN = np.array([[[1, 10], [2, 20], [3, 30], [4, 40], [5, 50], [6, 60]]], np.float32)


def test_who_sees_whom():
    """Two examples and a pad are in a row; then one query of each reads keys in another order."""
    row = Places(np.array([[1, 1, 1, 2, 2, 0]]), np.array([[0, 1, 2, 0, 1, 0]]))
    blocks = [[1] * 3 + [0] * 3] * 3 + [[0] * 3 + [1, 1, 0]] * 2 + [[0] * 6]
    assert attention_mask(row, row, False)[0].astype(int).tolist() == blocks
    causal = np.tril(np.array(blocks)).tolist()
    assert attention_mask(row, row, True)[0].astype(int).tolist() == causal
    queries = Places(np.array([[2, 1]]), np.array([[0, 1]]))
    keys = Places(np.array([[1, 0, 2, 1, 2]]), np.array([[1, 0, 1, 2, 0]]))
    actual = attention_mask(queries, keys, True)[0].astype(int).tolist()
    assert actual == [[0, 0, 0, 0, 1], [1, 0, 0, 0, 0]]


def test_membership():
    marks = [[[1, 1, 0, 0], [0, 0, 1, 0]]]
    np.testing.assert_array_equal(membership(np.array([[0, 0, 1, -1]]), 2), np.array(marks, bool))


MEANS = {
    "empty latent": ([0, 0, 1, 1, 2, 2], [[1.5, 15], [3.5, 35], [5.5, 55], [0, 0]]),
    "ragged last group": ([0, 0, 0, 0, 1, -1], [[2.5, 25], [5, 50], [0, 0], [0, 0]]),
    "mixed group sizes": ([0, 1, 1, 1, 2, 2], [[1, 10], [3, 30], [5.5, 55], [0, 0]]),
    "one marker a latent": ([-1, -1, 3, -1, 1, -1], [[0, 0], [5, 50], [0, 0], [3, 30]]),
}
JOINED = {
    "empty latent": ([0, 0, 0, 1, 1, 1], [[1, 10, 2, 20, 3, 30], [4, 40, 5, 50, 6, 60], [0] * 6]),
    "ragged last group": (
        [0, 0, 0, 1, -1, -1],
        [[1, 10, 2, 20, 3, 30], [4, 40, 0, 0, 0, 0], [0] * 6],
    ),
    "mixed group sizes": (
        [0, 0, 1, 1, 1, 2],
        [[1, 10, 2, 20, 0, 0], [3, 30, 4, 40, 5, 50], [6, 60, 0, 0, 0, 0]],
    ),
}


@pytest.mark.parametrize(("groups", "expected"), MEANS.values(), ids=MEANS)
def test_pool_mean(groups, expected):
    np.testing.assert_allclose(pool_mean(HIDDEN, np.array([groups]), 4)[0], expected)


def test_means_of_bfloat16_are_rounded_once():
    """261 / 3 is 87; a sum in bfloat16 would be 260, and its mean 86.5."""
    hidden = jnp.array([[[256.0], [4.0], [1.0]]], jnp.bfloat16)
    pooled = pool_mean(hidden, np.zeros((1, 3), np.int32), 1)
    assert pooled.dtype == jnp.bfloat16 and pooled.tolist() == [[[87.0]]]


@pytest.mark.parametrize(("groups", "expected"), JOINED.values(), ids=JOINED)
def test_pool_concat(groups, expected):
    np.testing.assert_allclose(pool_concat(HIDDEN, np.array([groups]), 3, 3)[0], expected)


def test_place():
    embedded, latents = (
        np.zeros((2, 4, 1), np.float32),
        np.array([[[1], [2]], [[3], [4]]], np.float32),
    )
    slots = np.array([[-1, 0, 1, -1], [1, 1, -1, 0]])
    np.testing.assert_array_equal(
        place(embedded + 9, latents, slots)[..., 0], [[9, 1, 2, 9], [4, 4, 9, 3]]
    )


def test_rotate():
    """Frequency i turns the pair (x[i], x[i + H/2]), by positions rather than columns."""
    rng = np.random.default_rng(0)
    x, positions = rng.normal(size=(1, 3, 2, 6)).astype(np.float32), np.array([[0, 5, 1000]])
    pairs = x[..., :3] + 1j * x[..., 3:]
    turned = pairs * np.exp(1j * positions[..., None, None] * 1e4 ** (-np.arange(3) / 3))
    np.testing.assert_allclose(
        rotate(x, positions, 1e4), np.concatenate([turned.real, turned.imag], -1), atol=1e-4
    )


def softmax_attention(q, k, v, readable):
    """Compute attention by hand: query t of four heads reads its readable keys of two heads."""
    expected = np.zeros_like(q)
    for t, n in np.ndindex(q.shape[1:3]):
        weights = np.exp(k[0, n // 2] @ q[0, t, n] / np.sqrt(q.shape[-1])) * readable[t]
        expected[0, t, n] = weights @ v[0, n // 2] / weights.sum()
    return expected


@pytest.mark.parametrize("causal", [True, False])
def test_attend(causal):
    """Sequences attend to themselves, and to a cache whose keys lie in any order."""
    rng = np.random.default_rng(0)
    q, k, v = (
        rng.normal(size=shape).astype(np.float32)
        for shape in ((1, 3, 4, 8), (1, 2, 3, 8), (1, 2, 3, 8))
    )
    cached = tuple(rng.normal(size=(1, 2, 6, 8)).astype(np.float32) for _ in range(2))
    queries = Places(np.array([[1, 1, 2]]), np.array([[1, 2, 1]]))
    own = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]])
    places = Places(np.array([[1, 2, 1, 0, 2, 1]]), np.array([[0, 0, 2, 0, 1, 1]]))
    readable = np.array([[1, 0, 0, 0, 0, 1], [1, 0, 1, 0, 0, 1], [0, 1, 0, 0, 1, 0]])
    if not causal:
        own[0], readable[0] = own[1], readable[1]
    np.testing.assert_allclose(
        attend(q, k, v, queries, causal), softmax_attention(q, k, v, own), rtol=1e-5, atol=1e-6
    )
    both = [np.concatenate([old, new], axis=2) for old, new in zip(cached, (k, v), strict=True)]
    expected = softmax_attention(q, *both, np.concatenate([readable, own], axis=1))
    cache = Cache(*cached, places, jnp.int32(6))
    actual = attend_after(q, (k, v), queries, cache, None, causal)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_attention_after_a_cache_in_bfloat16_of_several_rows():
    """XLA for CPUs cannot multiply bfloat16 in every order of dimensions."""
    rng = np.random.default_rng(0)
    shapes = ((3, 1, 8, 32), (3, 4, 1, 32), (3, 4, 1, 32), (3, 4, 16, 32), (3, 4, 16, 32))
    q, k, v, keys, values = (jnp.array(rng.normal(size=shape), jnp.bfloat16) for shape in shapes)
    queries, places = (Places(jnp.ones((3, n), jnp.int32), jnp.full((3, n), n)) for n in (1, 16))

    @jax.jit
    def attended(own, cached):
        return attend_after(
            own[0], own[1:], queries, Cache(*cached, places, jnp.int32(16)), None, False
        )

    own, cached = (q, k, v), (keys, values)
    rounded, exact = (
        attended(own, cached),
        attended(*jax.tree.map(lambda x: x.astype(jnp.float32), (own, cached))),
    )
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_allclose(rounded.astype(jnp.float32), exact, atol=2e-2)


def test_norm_computes_in_float32():
    rng = np.random.default_rng(0)
    x, scale = (
        jnp.asarray(rng.normal(size=(3, 8)), jnp.bfloat16),
        rng.normal(size=8).astype(np.float32),
    )
    x32 = np.asarray(x, np.float32)
    expected = x32 / np.sqrt((x32**2).mean(-1, keepdims=True) + 1e-6) * scale
    normed = RMSNorm(1e-6).apply({"params": {"scale": scale}}, x)
    assert normed.dtype == jnp.bfloat16
    np.testing.assert_array_equal(normed, jnp.asarray(expected, jnp.bfloat16))


@pytest.fixture(scope="module")
def noisy(params):
    """Add noise to every parameter: residual branches start at zero and would not matter."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: np.asarray(x) + 0.1 * rng.normal(size=x.shape).astype(np.float32), params
    )


@pytest.fixture(scope="module")
def compress(model_config, noisy):
    return jax.jit(
        lambda windows: LCLM(model_config).apply({"params": noisy}, windows, method=LCLM.compress)[
            0
        ]
    )


@settings(max_examples=12, deadline=None)
@given(first=st.integers(1, 12), second=st.integers(1, 12), seed=st.integers(0, 99))
def test_context_alone_equals_context_in_a_shared_window(
    compress, model_config, first, second, seed
):
    """Two contexts of up to three latents share a window of four, or have one each."""
    rng = np.random.default_rng(seed)
    ratio, room = model_config.compression.ratio, model_config.compression.latents_per_window
    counts = [-(-first // ratio), -(-second // ratio)]
    if sum(counts) > room:
        counts[1], second = room - counts[0], min(second, (room - counts[0]) * ratio)
    contexts = [rng.integers(0, model_config.encoder.vocab, n) for n in (first, second)]

    def read(seats):
        """Latents of one window that holds contexts at the given (position, latent)."""
        windows = empty_windows(1, 1, model_config.window_length, room)
        for segment, (context, (start, latent)) in enumerate(seats, start=1):
            here, own = (0, 0, slice(start, start + len(context))), np.arange(len(context))
            windows.tokens[here], windows.segments[here] = context, segment
            windows.positions[here], windows.groups[here] = own, own // ratio + latent
        return compress(windows)

    together = read([(contexts[0], (0, 0)), (contexts[1], (first, counts[0]))])
    alone = np.concatenate(
        [read([(context, (0, 0))])[:n] for context, n in zip(contexts, counts, strict=True)]
    )
    np.testing.assert_allclose(together[: sum(counts)], alone, atol=1e-5)


def test_rematerialisation_changes_nothing(model_config, noisy):
    tokens = np.arange(12).reshape(2, 6)
    places = Places(np.ones_like(tokens), np.broadcast_to(np.arange(6), tokens.shape))

    def loss(params, remat):
        model = Transformer(model_config.decoder, remat)
        hidden = model.apply({"params": params}, method=lambda m: m(m.embed(tokens), places)[0])
        return jnp.square(hidden - 0.5).mean()

    compute = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    expected = compute(noisy["decoder"], "none")
    for remat in ("dots", "full"):
        result = compute(noisy["decoder"], remat)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), result, expected
        )


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_remat_dots_keeps_what_attention_gave(model_config, noisy, monkeypatch, platform):
    """Only what lies between products is computed again, so not attention's softmax."""
    monkeypatch.setattr("lclm_jax.model.attention.dispatch.platform", lambda: platform)
    tokens = np.arange(12).reshape(2, 6)
    places = Places(np.ones_like(tokens), np.broadcast_to(np.arange(6), tokens.shape))

    def count(remat):
        def loss(params):
            model = Transformer(model_config.decoder, remat)
            return model.apply(
                {"params": params}, method=lambda m: m(m.embed(tokens), places)[0]
            ).sum()

        names = [
            equation.primitive.name
            for equation in equations(jax.make_jaxpr(jax.grad(loss))(noisy["decoder"]).jaxpr)
        ]
        return names.count("exp")

    assert count("none") == count("dots") < count("full")


def test_every_parameter_has_logical_axes(model_config):
    """The head is untied, so it is among them; a name outside the rules would mean replicated."""
    config = replace(model_config, decoder=replace(model_config.decoder, tied=False))
    boxed = jax.eval_shape(lambda: init_boxed(config, jax.random.key(0)))
    leaves = jax.tree.leaves_with_path(
        boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
    )
    assert "head" in boxed
    for path, leaf in leaves:
        assert isinstance(leaf, nn.LogicallyPartitioned), path
        assert len(leaf.names) == leaf.value.ndim and set(leaf.names) <= set(dict(RULES)), (
            path,
            leaf.names,
        )


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-1.7b", 1_720_574_976),
        ("qwen3-4b", 4_022_468_096),
        ("qwen3-8b", 8_190_735_360),
    ],
)
def test_shapes_have_the_sizes_of_the_models_they_are_named_after(name, size, one_device):
    config = replace(published_config().model, encoder=SHAPES["qwen3-0.6b"], decoder=SHAPES[name])
    abstract = abstract_params(config, one_device)
    assert (
        sum(leaf.size for leaf in jax.tree.leaves((abstract["decoder"], abstract.get("head"))))
        == size
    )


def test_published_sizes(one_device):
    """The model has 4.6 billion parameters; the adapter's number is the paper's."""
    abstract = abstract_params(published_config().model, one_device)
    leaves = jax.tree.leaves(abstract)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract["adapter"])) == 9_181_184
    assert sum(leaf.size for leaf in leaves) // 10**8 == 46


@pytest.fixture(scope="module")
def scored():
    """Return (hidden, table, targets, weights) of two rows of twelve positions, few with weight."""
    rng = np.random.default_rng(0)
    hidden, table = (
        rng.normal(size=(2, 12, 8)).astype(np.float32),
        rng.normal(size=(30, 8)).astype(np.float32),
    )
    weights = np.array(
        [[0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0.5], [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]], np.float32
    )
    return hidden, table, rng.integers(0, 30, (2, 12)), weights


def naive_losses(hidden, table, targets, weights):
    logits = jnp.einsum("BTD,VD->BTV", hidden, table)
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
    return (
        jnp.sum(nll * weights),
        jnp.where(weights > 0, nll, 0),
        jnp.where(weights > 0, logits.argmax(-1) == targets, 0),
    )


@partial(jax.jit, static_argnames="chunk")
def loss_and_gradients(hidden, table, targets, weights, chunk=None):
    """Return ((sum, [losses, correct]), gradients), without a chunk from all logits at once."""

    def total(hidden, table):
        losses = naive_losses if chunk is None else partial(cross_entropy, chunk=chunk)
        summed, *each = losses(hidden, table, targets, weights)
        return summed, each

    return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(hidden, table)


@pytest.mark.parametrize(
    "chunk", [2, 10, 1000], ids=["two positions", "not a divisor", "all at once"]
)
def test_loss_equals_full_logits(scored, chunk):
    chunked, expected = loss_and_gradients(*scored, chunk=chunk), loss_and_gradients(*scored)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), chunked, expected
    )


def test_loss_skips_positions_without_weight(scored):
    """The first chunk has all weighted positions; those of the others are never read."""
    hidden, table, targets, weights = scored
    poisoned = np.where(weights[..., None] > 0, hidden, np.nan)
    (_, (nll, _)), gradients = loss_and_gradients(
        poisoned, table, targets, weights, chunk=int((weights > 0).sum())
    )
    assert np.isfinite(nll).all() and all(np.isfinite(x).all() for x in gradients)
    assert not gradients[0][weights == 0].any()


@pytest.mark.parametrize(("asked", "products"), [((0, 1), 3), ((0,), 2), ((1,), 2), ((), 1)])
def test_logits_are_made_once_and_gradients_only_where_asked_for(scored, asked, products):
    """Logits and each gradient are a product of all positions, the vocabulary and the width."""
    hidden, table, targets, weights = scored

    def total(hidden, table):
        return cross_entropy(hidden, table, targets, weights, chunk=targets.size)[0]

    made = jax.make_jaxpr(jax.grad(total, argnums=asked) if asked else total)(hidden, table)
    assert matmul_flops(made.jaxpr).total() == products * 2 * targets.size * table.size


def test_losses_of_bfloat16_are_float32_sums_of_its_products(scored):
    """They equal those of the same numbers in float32, far within the precision of bfloat16."""
    hidden, table, targets, weights = scored
    rounded = jnp.asarray(4 * hidden, jnp.bfloat16), jnp.asarray(table, jnp.bfloat16)
    exact = [x.astype(jnp.float32) for x in rounded]
    actual = cross_entropy(*rounded, targets, weights, chunk=5)
    expected = naive_losses(*exact, targets, weights)
    assert {x.dtype for x in actual} == {jnp.dtype("float32")}
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(actual[1], expected[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("positions", "chunk", "total"), [(1024, 2, 512), (777, 259, 388)])
def test_gradients_of_a_bfloat16_table_add_up_in_float32(positions, chunk, total):
    """Equal positions have gradients of one half each.

    In bfloat16 a sum of chunks would stop growing at 256, and three chunks of 129.5, rounded to
    130, would be 390.
    """
    hidden = jnp.ones((1, positions, 1), jnp.bfloat16)
    table = jnp.zeros((2, 1), jnp.bfloat16)
    targets, weights = np.zeros((1, positions), np.int32), np.ones((1, positions), np.float32)
    summed = jax.grad(lambda table: cross_entropy(hidden, table, targets, weights, chunk)[0])
    np.testing.assert_array_equal(summed(table).astype(jnp.float32), [[-total], [total]])


def test_losses_by_position_have_no_gradients_and_say_so(scored):
    hidden, table, targets, weights = scored
    by_position = jax.grad(
        lambda hidden: cross_entropy(hidden, table, targets, weights, chunk=4)[1].sum()
    )
    with pytest.raises(
        TypeError, match="expected gradients of cross_entropy's sum, its first result"
    ):
        by_position(hidden)


def test_logits_of_a_whole_sequence_never_exist():
    """No array with a vocabulary axis is as large as [B T V], in the loss or its gradient."""
    b, t, d, v, chunk = 2, 48, 4, 101, 8

    def total(hidden, table):
        return cross_entropy(
            hidden, table, np.zeros((b, t), np.int32), np.ones((b, t), np.float32), chunk
        )[0]

    jaxpr = jax.make_jaxpr(jax.grad(total, argnums=(0, 1)))(
        np.zeros((b, t, d), np.float32), np.zeros((v, d), np.float32)
    )
    shapes = {
        variable.aval.shape for equation in equations(jaxpr.jaxpr) for variable in equation.outvars
    }
    over_vocabulary = {shape for shape in shapes if v in shape}
    assert (chunk, v) in over_vocabulary, (
        "the walk must see the logits of a chunk for this test to mean anything"
    )
    assert max(map(np.prod, over_vocabulary)) <= chunk * v


def equations(jaxpr: Jaxpr):
    """Yield the equations of a jaxpr and of the jaxprs inside them."""
    for equation in jaxpr.eqns:
        yield equation
        for parameter in jax.tree.leaves(
            tuple(equation.params.values()), is_leaf=lambda x: isinstance(x, (Jaxpr, ClosedJaxpr))
        ):
            if isinstance(parameter, (Jaxpr, ClosedJaxpr)):
                yield from equations(getattr(parameter, "jaxpr", parameter))
