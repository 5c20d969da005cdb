"""The small parts of a Qwen3 layer: norm, rotary positions and gated MLP.

Each computes in the dtype of its input.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lclm_jax.config import TransformerConfig
from lclm_jax.model import cpu
from lclm_jax.typing import Array, Float, Int, typed


def matrix_init(config: TransformerConfig):
    """Return the initialiser of matrices that read the residual stream.

    By default it keeps the scale of a sum at any width (0.02 at a width of 2560).
    """
    deviation = config.initializer_range
    if deviation is None:
        deviation = config.width**-0.5
    return nn.initializers.normal(deviation)


def residual_init(config: TransformerConfig):
    """Return the initialiser of matrices that write to the residual stream.

    By default they start at zero, so that a layer first reads what the embedding wrote, and a small
    model learns sooner to copy through its latents.
    """
    if config.initializer_range is None:
        return nn.initializers.zeros
    return matrix_init(config)


def parameter(
    module: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str, ...], init
) -> Array:
    """Return a float32 parameter of `module` that carries its logical axes."""
    boxed: Any = module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)
    return boxed


def einsum(axes: str, x: Array, matrix: Array) -> Array:
    """Multiply activations by a parameter, as in "BTD,DNH->BTNH", in the way of the chips in scope.

    The last axes of `x` are summed over, with the first of the matrix.
    """
    x_axes, result_axes = axes.split(",")[0], axes.split("->")[1]
    summed = len(set(x_axes) - set(result_axes))
    if cpu.merges_rows():
        return cpu.multiply_rows(x, matrix, summed)
    # jnp.einsum would sum over axes in alphabetical order, not in that of memory.
    return jnp.tensordot(x, matrix, summed)


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed as `rms_norm` in the way of the chips in scope."""

    eps: float
    axis: str = "activation"

    @nn.compact
    @typed
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        scale = parameter(self, "scale", (x.shape[-1],), (self.axis,), nn.initializers.ones)
        compute = cpu.on_merged_rows(rms_norm) if cpu.merges_rows() else rms_norm
        return compute(x.astype(jnp.float32), scale, self.eps, x.dtype)


def rms_norm(x32: Array, scale: Array, eps: float, dtype: jnp.dtype) -> Array:
    """Divide float32 values [... D] by their root mean square and multiply them by `scale`.

    The result is rounded to `dtype` once.
    """
    mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
    normed = x32 * jax.lax.rsqrt(mean_square + eps)
    return (normed * scale).astype(dtype)


@typed
def rotate(
    x: Float[Array, "B T heads H"],
    positions: Int[Array, "B T"],
    theta: float,
    rounded: bool = False,
) -> Float[Array, "B T heads H"]:
    """Apply rotary positions (RoFormer, arXiv 2104.09864), halves paired as in Qwen and Llama.

    Angles are float32. `rounded` first rounds the frequencies to bfloat16 (checkpoint format,
    "Rotary precision").
    """
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if rounded:
        # Unlike a cast, the compiler may not optimise this away.
        frequencies = jax.lax.reduce_precision(frequencies, exponent_bits=8, mantissa_bits=7)
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


class MLP(nn.Module):
    """Gated MLP (SwiGLU): down(silu(gate(x)) * up(x))."""

    config: TransformerConfig

    @nn.compact
    @typed
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        c = self.config
        gate = parameter(self, "gate", (c.width, c.mlp), ("embed", "mlp"), matrix_init(c))
        up = parameter(self, "up", (c.width, c.mlp), ("embed", "mlp"), matrix_init(c))
        down = parameter(self, "down", (c.mlp, c.width), ("mlp", "embed"), residual_init(c))

        gated = jax.nn.silu(einsum("BTD,DF->BTF", x, gate))
        hidden = gated * einsum("BTD,DF->BTF", x, up)
        return einsum("BTF,FD->BTD", hidden, down)
