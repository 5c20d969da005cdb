"""The adapter: pooled encoder states to vectors of the decoder's width."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lclm_jax.batch import Places
from lclm_jax.config import ModelConfig
from lclm_jax.model.layers import RMSNorm, parameter
from lclm_jax.model.transformer import layer_stack
from lclm_jax.typing import Array, Float, typed

NORM_EPS = 1e-6  # of the published adapter, whatever the towers use


class Adapter(nn.Module):
    """RMSNorm -> Linear -> exact GELU -> Linear (checkpoint format: adapter/adapter.safetensors).

    Attention layers stand after this (`mlp_attn`) or before it (`attn_mlp`). In these the latents
    of a context see each other in both directions, and no other latents.
    """

    config: ModelConfig

    @nn.compact
    @typed
    def __call__(self, pooled: Float[Array, "B M I"], places: Places) -> Float[Array, "B M D"]:
        kind = self.config.adapter.kind
        x = self._attend(pooled, places) if kind == "attn_mlp" else pooled
        x = self._transform(x)
        return self._attend(x, places) if kind == "mlp_attn" else x

    def _transform(self, x: Array) -> Array:
        """Apply the norm and the MLP, whose hidden width is the decoder's."""
        inputs, width = self.config.adapter_inputs, self.config.decoder.width
        zeros = nn.initializers.zeros
        fc1 = parameter(self, "fc1", (inputs, width), ("activation", "embed"), _linear_init)
        fc1_bias = parameter(self, "fc1_bias", (width,), ("activation",), zeros)
        fc2 = parameter(self, "fc2", (width, width), ("embed", "activation"), _linear_init)
        fc2_bias = parameter(self, "fc2_bias", (width,), ("activation",), zeros)

        x = RMSNorm(NORM_EPS, name="norm")(x)
        hidden = jnp.einsum("BMI,IF->BMF", x, fc1) + fc1_bias
        hidden = jax.nn.gelu(hidden, approximate=False)
        return jnp.einsum("BMF,FD->BMD", hidden, fc2) + fc2_bias

    def _attend(self, x: Array, places: Places) -> Array:
        config, axes = self.config.adapter_layers, ("batch", None)
        layers = layer_stack(config, self.config.remat, "layers", axes)
        return layers(x, places, None, None)[0]


def _linear_init(rng: Array, shape: tuple[int, ...], dtype) -> Array:
    """Initialise as torch's Linear does: uniformly within 1 / sqrt(inputs)."""
    bound = shape[0] ** -0.5
    return jax.random.uniform(rng, shape, dtype, -bound, bound)
