"""The projector's learned half: pooled encoder states to vectors of the decoder's width."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lclm_jax.model.layers import RMSNorm, parameter
from lclm_jax.typing import Array, Float, typed

NORM_EPS = 1e-6  # the published adapter's, whatever the towers use


def _linear_init(rng, shape, dtype):
    """torch's Linear default: uniform within 1 / sqrt(inputs)."""
    bound = shape[0] ** -0.5
    return jax.random.uniform(rng, shape, dtype, -bound, bound)


class Adapter(nn.Module):
    """RMSNorm -> Linear -> exact GELU -> Linear (checkpoint format: adapter/adapter.safetensors)."""

    width: int

    @nn.compact
    @typed
    def __call__(self, pooled: Float[Array, "B M E"]) -> Float[Array, "B M D"]:
        zeros = nn.initializers.zeros
        fc1 = parameter(self, "fc1", (pooled.shape[-1], self.width), ("activation", "embed"), _linear_init)
        fc1_bias = parameter(self, "fc1_bias", (self.width,), ("activation",), zeros)
        fc2 = parameter(self, "fc2", (self.width, self.width), ("embed", "activation"), _linear_init)
        fc2_bias = parameter(self, "fc2_bias", (self.width,), ("activation",), zeros)
        x = RMSNorm(NORM_EPS, name="norm")(pooled)
        x = jax.nn.gelu(jnp.einsum("BME,ED->BMD", x, fc1) + fc1_bias, approximate=False)
        return jnp.einsum("BMD,Dd->BMd", x, fc2) + fc2_bias
