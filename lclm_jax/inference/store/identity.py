"""The identity of a model's encoder and adapter: a hash of all that latents depend on."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np

from lclm_jax.config import ModelConfig
from lclm_jax.config.values import to_dict
from lclm_jax.typing import Array, Params

WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}  # unsigned type by bytes
SALTS = (0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F)


def find_model_id(weights: Params, config: ModelConfig, marker: int) -> str:
    """Return the identity of an encoder with its adapter: 16 hexadecimal digits.

    The decoder is not part of it: latents do not depend on it. Parameters are hashed on their
    devices; the result does not depend on how they are split.
    """
    parts = {name: weights[name] for name in ("encoder", "adapter") if name in weights}
    hashes = [
        (jax.tree_util.keystr(path), x.shape, str(x.dtype), np.asarray(hash_array(x)).tolist())
        for path, x in jax.tree_util.tree_leaves_with_path(parts)
    ]
    settings = to_dict(config)
    settings = [settings["encoder"], settings["compression"], settings["adapter"], config.dtype]
    described = json.dumps([hashes, settings, config.decoder.width, marker])
    return hashlib.sha256(described.encode()).hexdigest()[:16]


@jax.jit
def hash_array(x: Array) -> Array:
    """Return four sums, modulo 2^32, of a hash of every number and its place in the array.

    Sums of integers do not depend on their order, so neither does the result on the device.
    """
    bits = jax.lax.bitcast_convert_type(x, WORDS[x.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = place * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    mixed = _mix(place) ^ bits
    return jnp.stack([jnp.sum(_mix(mixed + np.uint32(salt)), dtype=jnp.uint32) for salt in SALTS])


def _mix(x: Array) -> Array:
    """Spread every bit over all 32, as the finalizer of MurmurHash3 does."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
