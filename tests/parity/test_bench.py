"""Both sides of `launch.bench` compute and train the same."""

import pytest

torch = pytest.importorskip("torch")

from dataclasses import replace

import jax
import numpy as np

from launch.bench import __main__ as bench
from launch.bench.work import needed_flops, sizes
from lclm_jax.config import CompressionConfig
from lclm_jax.errors import UserError


@pytest.fixture(scope="module")
def sides():
    real = sizes().model
    encoder = replace(
        real.encoder, vocab=512, width=24, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=40
    )
    decoder = replace(
        real.decoder, vocab=512, width=40, layers=2, heads=6, kv_heads=3, head_dim=8, mlp=64
    )
    compression = CompressionConfig(ratio=4, window=32)
    tiny = replace(real, encoder=encoder, decoder=decoder, compression=compression)
    return bench.prepare(
        replace(sizes(), model=tiny, positions=400, context=2, question=9, answer=5, text=77)
    )


def test_both_sides_agree_then_train_and_decode(sides):
    work, jax_side, torch_side = sides
    assert max(bench.check_agreement(jax_side, torch_side).values()) < 1e-5
    for side in (jax_side, torch_side):
        for step in (side.encode, side.first_token, side.decode):
            step()()
    mine = [float(jax_side.train()()[1]["loss"]) for _ in range(3)]
    others = [torch_side.train()() for _ in range(3)]
    np.testing.assert_allclose(mine, others, rtol=1e-5)
    assert mine[2] < mine[0]
    assert all(flops > 0 for flops in needed_flops(work).values())


def test_sides_that_differ_are_not_timed(sides):
    _, jax_side, torch_side = sides
    jax_side.model.params = jax.tree.map(lambda x: 1.01 * x, jax_side.params)
    with pytest.raises(UserError, match=r"agree to 0.0001 before they are timed"):
        bench.check_agreement(jax_side, torch_side)


def test_figures_are_pair_by_pair():
    figures = bench.Figures(torch=[2.0, 3.0], lclm_jax=[1.0, 2.0])
    assert figures.ratios == [2.0, 1.5]
    assert bench.tabulate({"decode": figures}, {"decode": 1e9}, 1e10).row_count == 1
