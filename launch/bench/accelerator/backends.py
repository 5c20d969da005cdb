"""Attention back ends that are available on a device."""

import jax

from lclm_jax.batch import Places
from lclm_jax.model.attention import gpu
from lclm_jax.model.attention.dispatch import BACKENDS
from lclm_jax.model.attention.reference import attend_reference
from lclm_jax.model.attention.shards import Backend
from lclm_jax.typing import Array


def attention_backends() -> dict[str, Backend]:
    """Return back ends by name, the one the model uses first.

    They are called with (q, k, v, places, causal, axes).
    """
    platform = jax.default_backend()
    own = BACKENDS.get(platform, attend_reference)
    return {own.__name__: own, "blocked": gpu.attend_blocked}


def reference_backend() -> Backend:
    """Return the back end that computes all scores at once."""
    return attend_reference


def cudnn(q: Array, k: Array, v: Array, places: Places, causal: bool, axes: tuple) -> Array:
    """Compute attention with cuDNN, for comparison; rows must hold a single example."""
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="cudnn")
