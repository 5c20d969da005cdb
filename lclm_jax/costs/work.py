"""FLOPs, decoder positions and cache bytes of a model, counted from its shapes.

FLOPs count a multiply-add as two, and only matrix products and attention.
"""

from collections.abc import Collection
from dataclasses import dataclass

from lclm_jax.config import ModelConfig, TransformerConfig
from lclm_jax.data.records import count_latents

PARTS = ("encoder", "adapter", "decoder")  # in the order of the forward pass


@dataclass(frozen=True)
class Cost:
    """Cost of reading one context."""

    positions: int  # of the decoder
    cache_bytes: int  # keys and values of these positions
    encoder_flops: float
    adapter_flops: float
    decoder_flops: float

    @property
    def flops(self) -> float:
        """FLOPs of all parts."""
        return self.encoder_flops + self.adapter_flops + self.decoder_flops


@dataclass(frozen=True)
class Flops:
    """FLOPs of a pass: products with weights, and attention.

    In causal attention a query meets half of the keys.
    """

    products: float = 0.0
    attention: float = 0.0

    @property
    def total(self) -> float:
        """FLOPs of products and attention."""
        return self.products + self.attention

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.products + other.products, self.attention + other.attention)

    def scale(self, products: float, attention: float | None = None) -> "Flops":
        """Scale both counts by `products`, or attention by a factor of its own."""
        attention_factor = products if attention is None else attention
        return Flops(products * self.products, attention_factor * self.attention)


def layer_weights(config: TransformerConfig) -> int:
    """Count the matrix entries of one layer."""
    attention = config.width * config.head_dim * (2 * config.heads + 2 * config.kv_heads)
    return attention + 3 * config.width * config.mlp


def layer_flops(config: TransformerConfig, length: int) -> Flops:
    """Count the forward FLOPs of all layers over one sequence."""
    pairs = length * length / 2 if config.causal else length * length
    products = 2 * length * layer_weights(config)
    attention = 4 * pairs * config.heads * config.head_dim
    return Flops(products, attention).scale(config.layers)


def adapter_flops(config: ModelConfig, latents: int) -> Flops:
    """Count the forward FLOPs of the adapter over the latents of one context."""
    width = config.decoder.width
    products = Flops(2.0 * latents * width * (config.adapter_inputs + width))
    if not config.adapter.attention:
        return products
    return products + layer_flops(config.adapter_layers, latents)


def cache_bytes(config: TransformerConfig, positions: int, itemsize: int) -> int:
    """Count the bytes of keys and values of these positions in all layers."""
    return 2 * config.layers * config.kv_heads * config.head_dim * positions * itemsize


def uncompressed_cost(tokens: int, config: ModelConfig) -> Cost:
    """Return the cost of a decoder that reads the text itself."""
    return Cost(
        positions=tokens,
        cache_bytes=cache_bytes(config.decoder, tokens, _itemsize(config)),
        encoder_flops=0.0,
        adapter_flops=0.0,
        decoder_flops=layer_flops(config.decoder, tokens).total,
    )


def compressed_cost(tokens: int, config: ModelConfig, ratio: int | None = None) -> Cost:
    """Return the cost of compression: the decoder reads the latents between two tags."""
    full_windows, rest = divmod(tokens, config.compression.window)
    encoder = full_windows * layer_flops(config.encoder, config.window_length).total
    if rest:
        overhead = config.window_length - config.compression.window
        encoder += layer_flops(config.encoder, rest + overhead).total

    latents = count_latents(tokens, config, ratio)
    positions = latents + 2
    return Cost(
        positions=positions,
        cache_bytes=cache_bytes(config.decoder, positions, _itemsize(config)),
        encoder_flops=encoder,
        adapter_flops=adapter_flops(config, latents).total,
        decoder_flops=layer_flops(config.decoder, positions).total,
    )


def _itemsize(config: ModelConfig) -> int:
    return 2 if config.dtype == "bfloat16" else 4


def training_flops(
    config: ModelConfig, positions: int, windows: int, trained: Collection[str] = PARTS
) -> Flops:
    """Count the model FLOPs of one row, forward and backward.

    That is 6 per trained weight and token, plus causal attention. A frozen part needs no gradients
    of its weights, and none of its activations unless a part before it is trained. Recomputation
    in the backward pass is not counted. All positions of a row count as one example.
    """
    latents = windows * config.compression.window // config.compression.ratio
    head = Flops(2.0 * positions * config.decoder.width * config.decoder.vocab)
    forward = {
        "encoder": layer_flops(config.encoder, config.window_length).scale(windows),
        "adapter": adapter_flops(config, latents),
        "decoder": layer_flops(config.decoder, positions) + head,
    }

    total = Flops()
    has_gradient = False
    for part in PARTS:
        is_trained = part in trained
        has_gradient |= is_trained
        passes = 1 + has_gradient + is_trained  # forward, activations, weights
        total += forward[part].scale(passes, 1 + 2 * has_gradient)
    return total
