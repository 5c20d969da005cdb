"""The rates of a stage's first and last steps, and clipping."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from lclm_jax.config import ConfigError, Group, OptimizerConfig, StageConfig
from lclm_jax.optim import init_moments, learning_rates, schedule, update

FINAL = 0.1


def rates(steps: int, warmup: int, rate: float = 1.0) -> list[float]:
    """The rate of every step of a stage."""
    stage = StageConfig("warm", steps, (), (), warmup=warmup, final_rate=FINAL)
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


def test_a_rate_below_the_final_rate_stays():
    np.testing.assert_allclose(rates(4, 2, rate=0.05), [0.025, 0.05, 0.05, 0.05], rtol=1e-6)
    assert rates(4, 2, rate=0.0) == [0.0] * 4


STAGE = StageConfig("one", 1, (Group("decoder/.*", 0.5, decay=0.0),), (), final_rate=0.0)
PARAMS = {"decoder": {"x": jnp.zeros(2)}}


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
