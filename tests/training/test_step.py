"""One update and its metrics against numbers computed by hand, on a model of squares."""

import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lclm_jax.batch import empty_batch, empty_windows
from lclm_jax.config import (
    Config,
    DataConfig,
    MeshConfig,
    OptimizerConfig,
    ParameterGroup,
    RunConfig,
    StageConfig,
    Stream,
)
from lclm_jax.distributed.sharding import make_mesh, to_spec
from lclm_jax.training.optim import init_moments, split_trained
from lclm_jax.training.state import TrainState
from lclm_jax.training.step import _split_rows, gradients_of, objective, train_step

STAGE = StageConfig(
    "all",
    4,
    (ParameterGroup("encoder/.*", None), ParameterGroup("decoder/.*", 0.1, weight_decay=0.0)),
    (Stream("interleaved", "docs", 0.5), Stream("interleaved", "code", 0.5)),
    warmup_steps=2,
    final_learning_rate=0.0,
)
SCORES = np.array([3.0, 1.0, 2.0, -2.0, 0.5], np.float32)


def token_losses(params, batch, config, loss_chunk):
    """Stands for the model: the loss of a target is the square of its score times the gain."""
    scores = params["decoder"]["scores"][batch.targets] * params["encoder"]["gain"]
    nll = jnp.where(batch.weights > 0, (scores**2).astype(jnp.float32), 0)
    return jnp.sum(nll * batch.weights), nll, jnp.where(batch.weights > 0, scores < 0, False)


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr("lclm_jax.training.step.token_losses", token_losses)


@pytest.fixture
def config(model_config, model):
    run = RunConfig(max_skipped_steps=2)
    optimizer = OptimizerConfig(clip=None)
    return Config(model_config, (STAGE,), DataConfig(), optimizer=optimizer, run=run)


@pytest.fixture
def batch():
    """Four rows of which two have one trained token and one has three; one counts half."""
    made = empty_batch(4, 4, empty_windows(4, 2, 8, 2))
    made.targets[:] = [[0, 1, 2, 3], [3, 3, 0, 0], [1, 1, 1, 1], [4, 4, 4, 4]]
    made.weights[:] = [[1, 1, 1, 0], [0, 0.5, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    made.streams[:] = [[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    made.segments[:] = [[1, 1, 2, 2], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]]
    made.slots[0, 1:3] = [0, 3]
    made.windows.segments[0, 0, :5] = 1
    made.windows.segments[2, 1, :3] = 1
    return made


def params_of(scores=SCORES, gain=1.0):
    return {"decoder": {"scores": scores}, "encoder": {"gain": np.array([gain], np.float32)}}


def begin(config, params, **counts):
    zero = dict.fromkeys(("step", "skipped", "failing"), jnp.int32(0))
    moments = init_moments(params, STAGE, config.optimizer)
    return TrainState(params, moments, **(zero | {k: jnp.int32(n) for k, n in counts.items()}))


# 9 + 1 + 4 of the first row, half of 4, and 1/4, over four and a half trained tokens.
LOSS = (9 + 1 + 4 + 2 + 0.25) / 4.5
SLOPES = np.array([2 * 3, 2 * 1, 2 * 2, 0.5 * 2 * -2, 2 * 0.5]) / 4.5


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_loss_is_the_mean_over_the_weights_of_a_whole_batch(config, batch, parts):
    cut = replace(config, run=replace(config.run, micro_batches=parts))
    trained, frozen = split_trained(params_of(), STAGE)
    loss, sums, gradients = gradients_of(trained, frozen, batch, cut, STAGE)
    np.testing.assert_allclose(loss, LOSS, rtol=1e-6)
    assert gradients.keys() == {"decoder/scores"}
    np.testing.assert_allclose(gradients["decoder/scores"], SLOPES, rtol=1e-6)
    np.testing.assert_allclose(sums["stream_nll"], [10.25, 6])
    np.testing.assert_allclose(sums["stream_correct"], [0, 0.5])
    np.testing.assert_allclose(sums["stream_tokens"], [3, 1.5])


def test_a_batch_without_trained_tokens_has_no_loss_and_no_gradient(config, batch):
    nothing = batch.replace(weights=np.zeros_like(batch.weights))
    trained, frozen = split_trained(params_of(), STAGE)
    loss, _, gradients = gradients_of(trained, frozen, nothing, config, STAGE)
    assert loss == 0 and not gradients["decoder/scores"].any()
    assert objective(trained, frozen, nothing, config)[0] == 0


def test_an_objective_without_a_total_is_over_its_own_weights(config, batch):
    trained, frozen = split_trained(params_of(), STAGE)
    loss, (nll, correct) = objective(trained, frozen, batch, config)
    np.testing.assert_allclose(loss, LOSS, rtol=1e-6)
    np.testing.assert_allclose(nll[0], [9, 1, 4, 0])
    np.testing.assert_array_equal(correct[1], [False, True, False, False])
    assert objective(trained, frozen, batch, config, jnp.float32(9))[0] == pytest.approx(LOSS / 2)


@pytest.mark.parametrize("parts", [1, 4])
def test_gradients_of_a_bfloat16_model_are_float32_and_add_up_there(config, batch, parts):
    """Three rows of 1/256 beside one of 1 would be lost if sums were rounded to eight bits."""
    factors = np.array([1.0, 1 / 256, 0, 0, 0], np.float32)
    even = batch.replace(
        targets=np.array([[0] * 4, [1] * 4, [1] * 4, [1] * 4], np.int32),
        weights=np.array([[0, 0, 0, 1]] * 4, np.float32),
    )
    half = replace(
        config,
        model=replace(config.model, dtype="bfloat16"),
        run=replace(config.run, micro_batches=parts),
    )
    trained, frozen = split_trained(params_of(factors), STAGE)
    loss, _, gradients = gradients_of(trained, frozen, even, half, STAGE)
    assert gradients["decoder/scores"].dtype == jnp.float32
    np.testing.assert_allclose(loss, (1 + 3 / 256**2) / 4, rtol=1e-6)
    np.testing.assert_allclose(gradients["decoder/scores"][:2], [0.5, 3 / 512], rtol=1e-2)


def test_the_figures_of_a_step(config, batch):
    """Norms by component, of trained parameters only; the rate is the one that the step took."""
    params = params_of()
    after, metrics = train_step(begin(config, params), batch, config=config, stage=STAGE)
    metrics = jax.device_get(metrics)
    norm = np.linalg.norm(SLOPES)
    np.testing.assert_allclose(metrics["loss"], LOSS, rtol=1e-6)
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-6)
    norms = {name: metrics[name] for name in metrics if name.partition("_norm/")[1]}
    assert norms == {
        "gradient_norm/decoder": pytest.approx(norm, rel=1e-6),
        "update_norm/decoder": pytest.approx(0.05 * np.sqrt(5), rel=1e-3),  # Adam's first is a sign
        "parameter_norm/decoder": pytest.approx(np.linalg.norm(SCORES), rel=1e-6),
    }
    assert metrics["rate/decoder"] == pytest.approx(0.05) and "rate/encoder" not in metrics
    counts = {"context_tokens": 8, "latents": 2, "decoder_tokens": 13, "skipped": 0, "failing": 0}
    assert {name: metrics[name] for name in counts} == counts
    assert metrics["fill"] == 13 / 16 and metrics["window_fill"] == 8 / 64
    assert metrics["finite"] and metrics["stream_tokens"].tolist() == [3, 1.5]
    assert after.step == 1 and after.failing == 0
    np.testing.assert_allclose(
        after.params["decoder"]["scores"], SCORES - 0.05 * np.sign(SLOPES), rtol=1e-3
    )
    np.testing.assert_array_equal(after.params["encoder"]["gain"], params["encoder"]["gain"])


@pytest.mark.parametrize(
    ("gain", "failing", "moves", "expected"),
    [
        (1.0, 0, True, (4, 5, 0)),
        (1.0, 1, True, (4, 5, 0)),  # one that is finite ends the row of failures
        (np.nan, 0, False, (4, 6, 1)),
        (np.inf, 1, False, (4, 6, 2)),
        (1.0, 2, False, (4, 6, 3)),  # after max_skipped_steps of them nothing moves any more
    ],
)
def test_steps_that_are_not_finite_are_counted(config, batch, gain, failing, moves, expected):
    params = params_of(gain=gain)
    state = begin(config, params, step=3, skipped=5, failing=failing)
    after, metrics = train_step(state, batch, config=config, stage=STAGE)
    assert (int(after.step), int(after.skipped), int(after.failing)) == expected
    assert (int(metrics["skipped"]), int(metrics["failing"])) == expected[1:]
    assert bool(metrics["finite"]) == np.isfinite(gain)
    moved = np.any(after.params["decoder"]["scores"] != params["decoder"]["scores"])
    assert moved == moves == bool(after.moments["decoder/1"][0].count)


def test_a_finite_loss_with_a_gradient_beyond_float32_moves_nothing(config, batch, monkeypatch):
    @jax.custom_vjp
    def one(x):
        return jnp.float32(1)

    one.defvjp(lambda x: (one(x), x), lambda x, _: (jnp.full_like(x, jnp.inf),))
    monkeypatch.setattr(
        "lclm_jax.training.step.token_losses",
        lambda params, *arguments: (
            one(params["decoder"]["scores"]),
            *token_losses(params, *arguments)[1:],
        ),
    )
    after, metrics = train_step(begin(config, params_of()), batch, config=config, stage=STAGE)
    assert np.isfinite(metrics["loss"]) and not metrics["finite"] and after.skipped == 1
    np.testing.assert_array_equal(after.params["decoder"]["scores"], SCORES)


@pytest.mark.parametrize(("slots", "moves"), [(-1, False), (0, True)])
def test_one_latent_in_a_batch_is_enough_to_move_the_encoder(config, batch, slots, moves):
    everything = replace(STAGE, groups=(ParameterGroup(".*", 0.1, weight_decay=0.0),))
    alone = batch.replace(slots=np.full_like(batch.slots, -1))
    alone.slots[3, 3] = slots
    params, zero = params_of(), jnp.int32(0)
    moments = init_moments(params, everything, config.optimizer)
    state = TrainState(params, moments, zero, zero, zero)
    after, metrics = train_step(state, alone, config=config, stage=everything)
    assert np.any(after.params["encoder"]["gain"] != params["encoder"]["gain"]) == moves
    assert np.any(after.params["decoder"]["scores"] != SCORES) and metrics["latents"] == moves


def test_a_single_trained_token_counts_whole(config, batch):
    batch.weights[:] = 0
    batch.weights[0, 0] = 1
    trained, frozen = split_trained(params_of(), STAGE)
    assert gradients_of(trained, frozen, batch, config, STAGE)[0] == 9
    assert objective(trained, frozen, batch, config)[0] == 9


def test_every_device_splits_the_rows_it_has():
    mesh = make_mesh(MeshConfig(data=4), jax.devices()[:4])
    with jax.set_mesh(mesh):
        rows = jax.device_put(
            np.arange(24).reshape(8, 3), jax.NamedSharding(mesh, to_spec(("batch", None)))
        )
        compiled = jax.jit(partial(_split_rows, count=2)).lower(rows).compile()
        parts = compiled(rows)
    np.testing.assert_array_equal(parts[:, :, 0] // 3, [[0, 2, 4, 6], [1, 3, 5, 7]])
    assert parts.shape == (2, 4, 3) and parts.sharding.shard_shape(parts.shape) == (2, 1, 3)
    assert not re.search("all-|collective", compiled.as_text())
