"""Learning rates, clipping, and AdamW against the same algorithm written by hand."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from lclm_jax.config import ConfigError, OptimizerConfig, ParameterGroup, StageConfig
from lclm_jax.model.params import flatten, unflatten
from lclm_jax.training.optim import (
    assign_groups,
    init_moments,
    learning_rates,
    schedule,
    split_trained,
    update,
)

FINAL = 0.1


def rates(steps: int, warmup: int, rate: float = 1.0) -> list[float]:
    """The rate of every step of a stage."""
    stage = StageConfig("warm", steps, (), (), warmup_steps=warmup, final_learning_rate=FINAL)
    return [float(schedule(stage, rate)(updates)) for updates in range(steps)]


@pytest.mark.parametrize(
    ("steps", "warmup", "expected"),
    [
        (1, 0, [1.0]),
        (1, 1, [1.0]),
        (1, 250, [1.0]),
        (2, 0, [1.0, FINAL]),
        (2, 250, [1.0, FINAL]),
        (3, 0, [1.0, 0.55, FINAL]),  # halfway of a cosine from 1 to 0.1
        (3, 1, [1.0, 0.55, FINAL]),
        (4, 2, [0.5, 1.0, 0.55, FINAL]),
        (4, 4, [0.5, 1.0, 0.55, FINAL]),  # warm-up takes half of the steps at most
        (4, 9, [0.5, 1.0, 0.55, FINAL]),
        (5, 4, [0.5, 1.0, 0.775, 0.325, FINAL]),
    ],
)
def test_the_first_step_learns_and_the_last_has_the_final_rate(steps, warmup, expected):
    np.testing.assert_allclose(rates(steps, warmup), expected, rtol=1e-6)


def test_a_long_warm_up_takes_half_of_the_steps_and_not_more():
    np.testing.assert_allclose(
        rates(7, 9)[:4], [1 / 3, 2 / 3, 1.0, 0.1 + 0.9 * 0.853553], rtol=1e-5
    )


def test_a_rate_below_the_final_rate_stays():
    np.testing.assert_allclose(rates(4, 2, rate=0.05), [0.025, 0.05, 0.05, 0.05], rtol=1e-6)
    assert rates(4, 2, rate=0.0) == [0.0] * 4


STAGE = StageConfig(
    "one", 1, (ParameterGroup("decoder/.*", 0.5, weight_decay=0.0),), (), final_learning_rate=0.0
)
PARAMS = {"decoder": {"x": np.zeros(2, np.float32)}}


def moved(optimizer: OptimizerConfig, gradient) -> np.ndarray:
    """Parameters after one step of plain momentum-free AdamW from zero."""
    flags = jnp.bool_(True), jnp.bool_(True)
    moments = init_moments(PARAMS, STAGE, optimizer)
    assert learning_rates(moments, STAGE) == {"decoder": 0.5}
    gradients = {"decoder/x": jnp.asarray(gradient)}
    after, _ = update(PARAMS, moments, gradients, STAGE, optimizer, *flags)
    return np.asarray(after["decoder"]["x"])


def test_the_only_step_of_a_stage_moves_parameters():
    np.testing.assert_allclose(moved(OptimizerConfig(), [1.0, -1.0]), [-0.5, 0.5], rtol=1e-5)


def test_clipping_is_switched_off_by_none_and_not_by_zero():
    slow = OptimizerConfig(eps=1.0)  # so that the size of a gradient shows in a step
    free = moved(replace(slow, clip=None), [30.0, 40.0])
    np.testing.assert_allclose(free, [-0.5 * 30 / 31, -0.5 * 40 / 41], rtol=1e-5)
    clipped = moved(replace(slow, clip=5.0), [30.0, 40.0])
    np.testing.assert_allclose(clipped, [-0.5 * 3 / 4, -0.5 * 4 / 5], rtol=1e-5)
    with pytest.raises(ConfigError, match="clip must be a finite number, above 0, or none, got 0"):
        replace(slow, clip=0)


def test_a_gradient_within_the_limit_is_left_as_it_is():
    slow = OptimizerConfig(eps=1.0, clip=5.0)
    for gradient in ([0.3, -0.4], [2.4, 3.2], [6e-8, 8e-8], [0.0, 0.0]):
        expected = [-0.5 * x / (abs(x) + 1) for x in gradient]
        np.testing.assert_allclose(moved(slow, gradient), expected, rtol=1e-5)


MIXED = StageConfig(
    "mixed",
    steps=8,
    warmup_steps=2,
    final_learning_rate=0.01,
    groups=(
        ParameterGroup("encoder/table", None),
        ParameterGroup("encoder/.*", 0.2, weight_decay=0.0),
        ParameterGroup("decoder/bias", 0.3, weight_decay=0.0),
        ParameterGroup("decoder/.*", 0.1, weight_decay=0.5),
        ParameterGroup("adapter/.*", 0.4, weight_decay=0.0),
    ),
    streams=(),
)
ADAM = OptimizerConfig(beta1=0.8, beta2=0.9, eps=0.01, clip=1.0)


def mixed_params() -> dict:
    rng = np.random.default_rng(0)
    paths = ("encoder/table", "encoder/w", "decoder/bias", "decoder/w", "adapter/w")
    return unflatten({path: rng.normal(size=3).astype(np.float32) for path in paths})


def by_hand(params: dict, gradients: list[dict]) -> dict:
    """AdamW (arXiv 1711.05101) of MIXED, a dict of gradients a step."""
    x = {path: value.astype(np.float64) for path, value in flatten(params).items()}
    settings = {
        "encoder/w": (0.2, 0.0),
        "decoder/bias": (0.3, 0.0),
        "decoder/w": (0.1, 0.5),
        "adapter/w": (0.4, 0.0),
    }
    first, second = ({path: np.zeros(3) for path in settings} for _ in range(2))
    for t, gradient in enumerate(gradients, start=1):
        norm = np.sqrt(sum(np.sum(np.square(gradient[path])) for path in settings))
        factor = min(1.0, ADAM.clip / norm)
        for path, (peak, decay) in settings.items():
            g = gradient[path] * factor
            first[path] = 0.8 * first[path] + 0.2 * g
            second[path] = 0.9 * second[path] + 0.1 * g**2
            step = first[path] / (1 - 0.8**t) / (np.sqrt(second[path] / (1 - 0.9**t)) + 0.01)
            rate = (
                peak * t / 2
                if t <= 2
                else 0.01 + (peak - 0.01) * (1 + np.cos(np.pi * (t - 2) / 6)) / 2
            )
            x[path] = x[path] - rate * (step + decay * x[path])
    return x


def take_steps(params, gradients, finite=True, has_contexts=True):
    """Parameters, moments and the rates of each of the steps by `update`."""
    moments, rates = init_moments(params, MIXED, ADAM), []
    for gradient in gradients:
        rates.append({part: float(x) for part, x in learning_rates(moments, MIXED).items()})
        params, moments = update(
            params, moments, gradient, MIXED, ADAM, jnp.bool_(finite), jnp.bool_(has_contexts)
        )
    return params, moments, rates


def mixed_gradients(steps: int) -> list[dict]:
    """Norms on both sides of the limit; no component reaches it alone in the second step."""
    rng = np.random.default_rng(1)
    paths = split_trained(mixed_params(), MIXED)[0]
    sizes = [4.0, 0.4, 0.05, 1.0, 0.2, 3.0, 0.1, 0.5][:steps]
    return [
        {path: (size * rng.normal(size=3)).astype(np.float32) for path in paths} for size in sizes
    ]


def test_eight_steps_equal_adamw_by_hand():
    """Warm-up, a cosine, decay of one group, one clip over all components, a frozen table."""
    gradients = mixed_gradients(8)
    after, _, rates = take_steps(mixed_params(), gradients)
    expected = by_hand(mixed_params(), gradients)
    for path, value in flatten(after).items():
        np.testing.assert_allclose(value, expected[path], rtol=2e-4, atol=1e-6, err_msg=path)
    assert [rate["encoder"] for rate in rates][:3] == pytest.approx([0.1, 0.2, 0.187272], rel=1e-4)
    # Of the decoder's two groups the first counts.
    assert [rate["decoder"] for rate in rates][-1] == pytest.approx(0.01)
    assert rates[1]["decoder"] == pytest.approx(0.3)


def test_frozen_parameters_have_no_moments_and_no_decay():
    params = mixed_params()
    after, moments, _ = take_steps(params, mixed_gradients(2))
    np.testing.assert_array_equal(after["encoder"]["table"], params["encoder"]["table"])
    assert moments.keys() == {"encoder/1", "decoder/2", "decoder/3", "adapter/4"}
    assert moments["encoder/1"][0].mu.keys() == {"encoder/w"}
    trained, frozen = split_trained(params, MIXED)
    assert trained.keys() == {"encoder/w", "decoder/bias", "decoder/w", "adapter/w"}
    assert frozen.keys() == {"encoder/table"}
    assert all(x is flatten(params)[path] for path, x in (trained | frozen).items())


def test_a_group_of_rate_zero_has_moments_and_stays():
    still = replace(STAGE, groups=(ParameterGroup("decoder/.*", 0.0, weight_decay=0.0),))
    moments = init_moments(PARAMS, still, OptimizerConfig())
    assert learning_rates(moments, still) == {"decoder": 0}
    flags = jnp.bool_(True), jnp.bool_(True)
    gradients = {"decoder/x": jnp.ones(2)}
    after, moments = update(PARAMS, moments, gradients, still, OptimizerConfig(), *flags)
    assert not np.any(after["decoder"]["x"])
    assert np.all(moments["decoder/0"][0].mu["decoder/x"])


@pytest.mark.parametrize(
    ("finite", "has_contexts", "moving"),
    [
        (True, True, {"encoder", "adapter", "decoder"}),
        (True, False, {"decoder"}),
        (False, True, set()),
    ],
)
def test_what_may_move_is_decided_by_component(finite, has_contexts, moving):
    """A step that is not taken leaves parameters, moments and counts."""
    params = mixed_params()
    after, moments, _ = take_steps(params, mixed_gradients(1), finite, has_contexts)
    changed = {
        path.split("/")[0]
        for path, x in flatten(after).items()
        if not np.array_equal(x, flatten(params)[path])
    }
    assert changed == moving
    for label, state in moments.items():
        moves = label.split("/")[0] in moving
        assert int(state[0].count) == moves
        assert any(np.any(x) for x in state[0].mu.values()) == moves
        assert any(np.any(x) for x in state[0].nu.values()) == moves


def test_a_parameter_and_a_pattern_without_the_other_are_named_in_full():
    with pytest.raises(ConfigError) as unmatched:
        assign_groups(["head"], STAGE)
    assert str(unmatched.value) == (
        "stage one: no group matches parameter head; add a pattern (learning_rate=none freezes it)"
    )
    with pytest.raises(ConfigError) as unused:
        assign_groups(
            [f"decoder/{i}" for i in range(5)],
            replace(STAGE, groups=(*STAGE.groups, ParameterGroup("a", 1.0))),
        )
    assert str(unused.value) == (
        "stage one: patterns ['a'] match no parameter; "
        "parameters begin ['decoder/0', 'decoder/1', 'decoder/2']"
    )
