"""Small checkpoints, and comparisons of what is in them."""

from pathlib import Path

import jax
import numpy as np

from lclm_jax.checkpoint.steps import Checkpoints


def small(value=0.0):
    """A tree of a few arrays and its description, on one device."""
    tree = {
        "matrix": np.arange(4096, dtype=np.float32).reshape(64, 64) + value,
        "deep": {"count": np.int32(value)},
    }
    tree = jax.device_put(tree, jax.devices()[0])
    return tree, jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
    )


def assert_equal(tree, expected):
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


def save_three(directory):
    with Checkpoints(directory, keep=9) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, {"params": small(step)[0]}, {"step": step})


def files_of(step: Path) -> list[Path]:
    return sorted(path for path in step.rglob("*") if path.is_file())
