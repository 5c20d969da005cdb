"""The ways to compute attention that are there on a device."""

import jax

from lclm_jax.batch import Places
from lclm_jax.model.attention import gpu
from lclm_jax.model.attention.dispatch import BACKENDS
from lclm_jax.model.attention.reference import attend_reference
from lclm_jax.model.attention.shards import Backend
from lclm_jax.typing import Array


def attention_backends() -> dict[str, Backend]:
    """Back ends by name, the model's own first; call them with (q, k, v, places, causal, axes)."""
    platform = jax.default_backend()
    own = BACKENDS.get(platform, attend_reference)
    return {own.__name__: own, "blocked": gpu.attend_blocked}


def reference_backend() -> Backend:
    """All scores at once."""
    return attend_reference


def cudnn(q: Array, k: Array, v: Array, places: Places, causal: bool, axes: tuple) -> Array:
    """cuDNN's attention through jax.nn, to compare with; for rows of one example."""
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="cudnn")
