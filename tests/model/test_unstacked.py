"""Layers of a decoder stored one by one, for serving."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lclm_jax.model.unstacked import MAX_BYTES, is_unstacked, prefers_unstacked, split_layers


def stacked_layers(layers: int = 3):
    values = jnp.arange(layers * 4.0).reshape(layers, 2, 2)
    return {"mlp": {"gate": values, "up": values + 100}, "scale": values[:, 0]}


def test_layers_are_those_of_the_stack():
    stacked = stacked_layers()
    split = split_layers(stacked, 3)
    assert is_unstacked(split) and not is_unstacked(stacked)
    joined = jax.tree.map(lambda *own: np.stack(own), *split)
    jax.tree.map(np.testing.assert_array_equal, joined, stacked)


@pytest.mark.parametrize("donate", [False, True])
def test_only_donated_stacks_are_deleted(donate):
    stacked = stacked_layers()
    split_layers(stacked, 3, donate)
    assert [leaf.is_deleted() for leaf in jax.tree.leaves(stacked)] == [donate] * 3


def layers_of(size: int):
    """Return the shapes of two stacked layers of `size` bytes."""
    return {"gate": jax.ShapeDtypeStruct((2, size // 4), jnp.bfloat16)}


@pytest.mark.parametrize("platform", MAX_BYTES)
def test_stacks_up_to_a_size_are_split(platform):
    most = MAX_BYTES[platform]
    assert prefers_unstacked(layers_of(most), platform)
    assert not prefers_unstacked(layers_of(most + 4), platform)
    assert not prefers_unstacked((layers_of(4), layers_of(4)), platform)


def test_stacks_on_tpus_are_not_split():
    assert not prefers_unstacked(layers_of(4), "tpu")
