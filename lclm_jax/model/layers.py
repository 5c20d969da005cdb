"""The small parts of a Qwen3 layer: norm, rotary positions, gated MLP. Each computes in the dtype of its input."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lclm_jax.config import TransformerConfig
from lclm_jax.distributed.sharding import platform, splits
from lclm_jax.typing import Array, Float, Int, typed


def matrix_init(config: TransformerConfig):
    """Initialiser of what reads the residual stream: keeps the scale of a sum at any width (0.02 at a width of 2560)."""
    return nn.initializers.normal(
        config.width**-0.5 if config.initializer_range is None else config.initializer_range
    )


def residual_init(config: TransformerConfig):
    """Initialiser of what writes to the residual stream: zero, so that what a layer reads is at first what the embedding
    wrote and a small model learns sooner to copy through its latents."""
    return nn.initializers.zeros if config.initializer_range is None else matrix_init(config)


def parameter(
    module: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str, ...], init
) -> Array:
    """A float32 parameter that carries its logical axes."""
    boxed: Any = module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)
    return boxed


def merges_rows() -> bool:
    """Whether batch and length become one axis before products and norms: where nothing splits them, on CPUs, which are slow at
    sums over two axes and at a first axis of length 1."""
    return platform() == "cpu" and splits("length") == 1


def product(x: Array, matrix: Array, inputs: int = 1) -> Array:
    """[B T in...] times [in... out...] -> [B T out...]; `inputs` axes are summed over.

    On a CPU as one plain matrix product: summed over two axes, as a matrix's gradient otherwise is, it is transposed by hand.
    """
    if not merges_rows():
        return jnp.tensordot(x, matrix, inputs)
    size = math.prod(matrix.shape[:inputs])
    flat = jnp.reshape(x, (-1, size)) @ jnp.reshape(matrix, (size, -1))
    return flat.reshape(*x.shape[:2], *matrix.shape[inputs:])


class RMSNorm(nn.Module):
    """Root-mean-square norm, in float32 whatever the input, rounded once after the weight."""

    eps: float
    axis: str = "activation"

    @nn.compact
    @typed
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        scale = parameter(self, "scale", (x.shape[-1],), (self.axis,), nn.initializers.ones)
        x32 = x.astype(jnp.float32)
        if x.ndim > 2 and merges_rows():
            x32 = x32.reshape(-1, *x.shape[2:])
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return (x32 * scale).astype(x.dtype).reshape(x.shape)


@typed
def rotate(
    x: Float[Array, "B T n H"], positions: Int[Array, "B T"], theta: float, rounded: bool = False
) -> Float[Array, "B T n H"]:
    """Rotary positions on n heads (RoFormer, arXiv 2104.09864), halves paired as in Qwen and Llama; angles in float32.

    `rounded` first rounds the frequencies to bfloat16 (checkpoint format, "Rotary precision").
    """
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if rounded:
        frequencies = jax.lax.reduce_precision(
            frequencies, exponent_bits=8, mantissa_bits=7
        )  # a cast could be optimised away
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    ).astype(x.dtype)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    config: TransformerConfig

    @nn.compact
    @typed
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        c = self.config
        gate = parameter(self, "gate", (c.width, c.mlp), ("embed", "mlp"), matrix_init(c))
        up = parameter(self, "up", (c.width, c.mlp), ("embed", "mlp"), matrix_init(c))
        down = parameter(self, "down", (c.mlp, c.width), ("mlp", "embed"), residual_init(c))
        hidden = jax.nn.silu(product(x, gate)) * product(x, up)
        return product(hidden, down)
