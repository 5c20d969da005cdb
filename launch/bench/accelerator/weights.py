"""Random weights that any framework can make on any device, equal bit by bit.

Every weight is a hash of its position: an odd number of at most 255 in magnitude times a power of
two, which bfloat16 represents exactly. Nothing is copied between devices or processes, and a
bfloat16 model never needs a float32 copy. The standard deviation is 0.018 for all weights, those of
residual branches included.
"""

import zlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lclm_jax.config import ModelConfig
from lclm_jax.model.params import abstract_params, flatten, unflatten
from lclm_jax.typing import Array, Params

STEP = 2.0**-13  # weights are odd multiples of this
LARGEST = 255  # largest multiple in magnitude
FACTORS = (0x85EBCA6B, 0xC2B2AE35)  # from the finalizer of MurmurHash3
LAYERS = "layers"  # the name in the path of parameters that are stacked by layer


def seed_of(path: str, layer: int | None = None) -> int:
    """Return the seed of an array of weights."""
    return zlib.crc32(f"{path}/{layer}".encode())


def is_scale(path: str) -> bool:
    """Return whether a path is that of a norm's weights, which are all 1."""
    return path.endswith("/scale")


def random_params(config: ModelConfig, dtype: str, mesh: Mesh) -> Params:
    """Return parameters on the first device of a mesh, made layer by layer."""
    made = {}
    shapes: dict[str, jax.ShapeDtypeStruct] = flatten(abstract_params(config, mesh, dtype))
    for path, leaf in shapes.items():
        if is_scale(path):
            made[path] = jnp.ones(leaf.shape, dtype, device=leaf.sharding)
            continue
        stacked = f"/{LAYERS}/" in path
        layers = range(leaf.shape[0]) if stacked else [None]
        seeds = np.array([seed_of(path, layer) for layer in layers], np.uint32)
        shape = leaf.shape[1:] if stacked else leaf.shape
        with jax.set_mesh(mesh):
            array = _make(jax.device_put(seeds, mesh.devices.flat[0]), shape, dtype)
        made[path] = array if stacked else array[0]
    return unflatten(made)


@partial(jax.jit, static_argnames=("shape", "dtype"))
def _make(seeds: Array, shape: tuple[int, ...], dtype: str) -> Array:
    """Make an array [seeds, *shape], one seed after the other."""
    return jax.lax.map(partial(_hashed, shape=shape, dtype=dtype), seeds)


def _hashed(seed: Array, shape: tuple[int, ...], dtype: str) -> Array:
    index = jax.lax.iota(jnp.uint32, int(np.prod(shape)))
    bits = _mix(_mix(index) ^ seed) >> 24
    return ((2 * bits.astype(jnp.int32) - LARGEST) * STEP).astype(dtype).reshape(shape)


def _mix(x: Array) -> Array:
    for factor, shift in zip(FACTORS, (16, 13), strict=True):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)
