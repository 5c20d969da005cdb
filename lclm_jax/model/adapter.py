"""The projector's learned half: pooled encoder states to vectors of the decoder's width."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lclm_jax.batch import Places
from lclm_jax.config import ModelConfig
from lclm_jax.model.layers import RMSNorm, parameter
from lclm_jax.model.transformer import layer_stack
from lclm_jax.typing import Array, Float, typed

NORM_EPS = 1e-6  # the published adapter's, whatever the towers use


def _linear_init(rng, shape, dtype):
    """torch's Linear default: uniform within 1 / sqrt(inputs)."""
    bound = shape[0] ** -0.5
    return jax.random.uniform(rng, shape, dtype, -bound, bound)


class Adapter(nn.Module):
    """RMSNorm -> Linear -> exact GELU -> Linear (checkpoint format: adapter/adapter.safetensors).

    Attention layers stand after this (`mlp_attn`) or before it (`attn_mlp`); there the latents of one context, and of no
    other, see each other in both directions.
    """

    config: ModelConfig

    @nn.compact
    @typed
    def __call__(self, pooled: Float[Array, "B M X"], places: Places) -> Float[Array, "B M D"]:
        c, width, zeros = self.config, self.config.decoder.width, nn.initializers.zeros
        x = pooled
        if c.adapter.kind == "attn_mlp":
            x = self._attend(x, places)
        fc1 = parameter(
            self, "fc1", (c.adapter_inputs, width), ("activation", "embed"), _linear_init
        )
        fc1_bias = parameter(self, "fc1_bias", (width,), ("activation",), zeros)
        fc2 = parameter(self, "fc2", (width, width), ("embed", "activation"), _linear_init)
        fc2_bias = parameter(self, "fc2_bias", (width,), ("activation",), zeros)
        x = RMSNorm(NORM_EPS, name="norm")(x)
        x = jax.nn.gelu(jnp.einsum("BMX,XD->BMD", x, fc1) + fc1_bias, approximate=False)
        x = jnp.einsum("BMD,Dd->BMd", x, fc2) + fc2_bias
        return self._attend(x, places) if c.adapter.kind == "mlp_attn" else x

    def _attend(self, x: Array, places: Places) -> Array:
        layers = layer_stack(
            self.config.adapter_layers, self.config.remat, "layers", ("batch", None)
        )
        return layers(x, places, None, None)[0]
