"""The ways to compute attention that are there on a device."""

import jax
from lclm_jax.model import attend
from lclm_jax.model.attend import Backend


def attention_backends() -> dict[str, Backend]:
    """By name; each is called with (q, k, v, places, causal, axes). The model's own comes first."""
    platform = jax.default_backend()
    own = attend.BACKENDS.get(platform, attend.reference)
    every = {own.__name__: own, "blocked": attend.blocked}
    return every | ({"stretched": attend.stretched} if platform == "cpu" else {})


def reference_backend() -> Backend:
    """All scores at once."""
    return attend.reference
