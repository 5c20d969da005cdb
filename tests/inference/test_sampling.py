"""Sampling of the next token from logits written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lclm_jax.inference import sampling as module
from lclm_jax.inference.sampling import Rules, Sampling, choose

pytestmark = pytest.mark.image

LOGITS = np.log(np.array([0.05, 0.5, 0.15, 0.3], np.float32))


def keys(rows, seed=0):
    """Return a key for each row."""
    return jax.random.split(jax.random.key(seed), rows)


def draw(sampling, logits=LOGITS, used=(), count=2000):
    """Return the share of draws in which each token is chosen."""
    marks = np.isin(np.arange(len(logits)), used)
    tiled = (np.tile(logits.astype(np.float32), (count, 1)), np.tile(marks, (count, 1)))
    chosen = choose(*tiled, keys(count), Rules.of(sampling))
    return np.bincount(chosen, minlength=len(logits)) / count


def test_greedy_takes_the_best():
    assert draw(Sampling())[1] == 1


def test_temperature_sharpens():
    np.testing.assert_allclose(draw(Sampling(temperature=1.0)), [0.05, 0.5, 0.15, 0.3], atol=0.03)
    squared = np.exp(2 * LOGITS)
    np.testing.assert_allclose(draw(Sampling(temperature=0.5)), squared / squared.sum(), atol=0.03)


@pytest.mark.parametrize(
    ("sampling", "possible"),
    [
        (Sampling(1.0, top_k=2), [1, 3]),
        (Sampling(1.0, top_k=9), [0, 1, 2, 3]),
        (Sampling(1.0, top_p=0.45), [1]),
        (Sampling(1.0, top_p=0.6), [1, 3]),
        (Sampling(1.0, top_p=0.9), [1, 2, 3]),
        (Sampling(1.0, top_k=3, top_p=0.6), [1, 3]),
        (Sampling(1.0, min_p=0.05), [0, 1, 2, 3]),
        (Sampling(1.0, min_p=0.25), [1, 2, 3]),
        (Sampling(2.0, min_p=0.25), [0, 1, 2, 3]),
        (Sampling(1.0, min_p=1.0), [1]),
        (Sampling(1.0, top_k=3, min_p=0.5), [1, 3]),
    ],
)
def test_top_k_top_p_and_min_p_cut_the_tail(sampling, possible):
    assert list(np.flatnonzero(draw(sampling))) == possible


def test_repetition_penalty_lowers_what_was_written():
    assert draw(Sampling(repetition_penalty=2.0), np.array([2.0, 1.5, -1.0]), used=[0])[1] == 1
    assert draw(Sampling(repetition_penalty=2.0), np.array([-1.0, -1.5, -9.0]), used=[0])[1] == 1
    assert draw(Sampling(repetition_penalty=2.0), np.array([2.0, 1.5, -1.0]), used=[1, 2])[0] == 1


def test_every_row_is_penalised_for_what_it_has_written_itself():
    logits = np.tile(np.float32([2.0, 1.5, -1.0]), (3, 1))
    used = np.array([[True, False, False], [False, True, False], [False, False, False]])
    rules = Rules.of(Sampling(repetition_penalty=2.0))
    assert choose(logits, used, keys(3), rules).tolist() == [1, 0, 0]


LOWEST = [
    (Sampling(1.0, top_k=1), 3),
    (Sampling(1.0, top_k=3), 1),
    (Sampling(1.0, top_k=4), 0),
    (Sampling(1.0, top_k=9), 0),
    # Shares 8, 4, 2 and 1 of 15.
    (Sampling(1.0, top_p=0.5), 3),
    (Sampling(1.0, top_p=0.6), 2),
    (Sampling(1.0, top_p=0.85), 1),
    # Of two candidates shares are 8 and 4 of 12.
    (Sampling(1.0, top_k=2, top_p=0.6), 3),
    (Sampling(1.0, top_k=2, top_p=0.7), 2),
]


@pytest.mark.parametrize("candidates", [1, 3, 99])
def test_the_lowest_score_that_is_left(candidates, monkeypatch):
    """Rows whose candidates do not suffice are drawn from the whole vocabulary."""
    monkeypatch.setattr("lclm_jax.inference.sampling.CANDIDATES", candidates)
    logits = jnp.log(jnp.array([[4.0, 1.0, 8.0, 2.0], [2.0, 8.0, 1.0, 4.0]]))
    lowest = jax.jit(lambda x, rules: module._lowest(x, rules))
    for sampling, expected in LOWEST:
        kept = lowest(logits + jnp.array([[0.0], [5.0]]), Rules.of(sampling))
        exact = np.log(2.0**expected) + np.array([0, 5])
        np.testing.assert_allclose(kept, exact, rtol=1e-5, atol=1e-6, err_msg=str(sampling))


def test_rules_hold_the_settings_of_a_sampling():
    rules = Rules.of(Sampling(0.5, 7, 0.25, 1.5, 3, 0.125), stops=[9, 4])
    assert rules.stops.tolist() == [9, 4] + [-1] * 14
    rest = (
        rules.temperature,
        rules.top_k,
        rules.top_p,
        rules.repetition_penalty,
        rules.min_tokens,
        rules.min_p,
    )
    assert [float(x) for x in rest] == [0.5, 7, 0.25, 1.5, 3, 0.125]
    assert [x.dtype for x in (*rest, rules.stops)] == [
        np.float32,
        np.int32,
        np.float32,
        np.float32,
        np.int32,
        np.float32,
        np.int32,
    ]
    assert Rules.of(Sampling(), range(16)).stops.tolist() == list(range(16))


def test_rows_draw_each_for_itself_and_another_key_draws_anew():
    logits, used = np.zeros((64, 50), np.float32), np.zeros((64, 50), bool)
    rules = Rules.of(Sampling(1.0))
    first, again, other = (
        choose(logits, used, keys(64, seed), rules).tolist() for seed in (0, 0, 1)
    )
    assert len(set(first)) > 20 and first == again != other
