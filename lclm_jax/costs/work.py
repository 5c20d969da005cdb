"""What reading a context and training on a row cost: decoder positions, cache bytes and FLOPs, counted from shapes."""

from collections.abc import Collection
from dataclasses import dataclass

from lclm_jax.config import ModelConfig, TransformerConfig
from lclm_jax.data.records import count_latents


@dataclass(frozen=True)
class Cost:
    """Reading one context. FLOPs count a multiply-add as two; matrix products and attention only."""

    positions: int  # the decoder's
    cache_bytes: int  # keys and values of those positions
    encoder_flops: float
    adapter_flops: float
    decoder_flops: float

    @property
    def flops(self) -> float:
        return self.encoder_flops + self.adapter_flops + self.decoder_flops


def layer_weights(config: TransformerConfig) -> int:
    """Matrix entries of one layer."""
    attention = config.width * config.head_dim * (2 * config.heads + 2 * config.kv_heads)
    return attention + 3 * config.width * config.mlp


@dataclass(frozen=True)
class Flops:
    """Work of a pass: products with weights, and attention, in which a causal query meets half of the keys."""

    products: float = 0.0
    attention: float = 0.0

    @property
    def total(self) -> float:
        return self.products + self.attention

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.products + other.products, self.attention + other.attention)

    def times(self, products: float, attention: float | None = None) -> "Flops":
        """So often; attention as often as products unless it is told apart."""
        return Flops(
            products * self.products,
            (products if attention is None else attention) * self.attention,
        )


def layer_flops(config: TransformerConfig, length: int) -> Flops:
    """One forward pass of all layers over one sequence."""
    pairs = length * length / 2 if config.causal else length * length
    products = 2 * length * layer_weights(config)
    return Flops(products, 4 * pairs * config.heads * config.head_dim).times(config.layers)


def adapter_flops(config: ModelConfig, latents: int) -> Flops:
    """One forward pass over the latents of one context."""
    products = Flops(
        2.0 * latents * config.decoder.width * (config.adapter_inputs + config.decoder.width)
    )
    return (
        products + layer_flops(config.adapter_layers, latents)
        if config.adapter.attention
        else products
    )


def read_flops(config: TransformerConfig, length: int) -> float:
    """Forward FLOPs of all layers over one sequence."""
    return layer_flops(config, length).total


def cache_bytes(config: TransformerConfig, positions: int, itemsize: int) -> int:
    return 2 * config.layers * config.kv_heads * config.head_dim * positions * itemsize


def uncompressed_cost(tokens: int, config: ModelConfig) -> Cost:
    """The decoder reads the text itself."""
    itemsize = 2 if config.dtype == "bfloat16" else 4
    return Cost(
        tokens,
        cache_bytes(config.decoder, tokens, itemsize),
        0.0,
        0.0,
        read_flops(config.decoder, tokens),
    )


def compressed_cost(tokens: int, config: ModelConfig) -> Cost:
    """The encoder reads windows of the text, the decoder their latents and two tags."""
    itemsize = 2 if config.dtype == "bfloat16" else 4
    full, rest = divmod(tokens, config.compression.window)
    extra = config.window_length - config.compression.window
    encoder = full * read_flops(config.encoder, config.window_length)
    if rest:
        encoder += read_flops(config.encoder, rest + extra)
    latents = count_latents(tokens, config)
    adapter = adapter_flops(config, latents).total
    positions = latents + 2
    decoder = read_flops(config.decoder, positions)
    return Cost(
        positions, cache_bytes(config.decoder, positions, itemsize), encoder, adapter, decoder
    )


def training_flops(
    config: ModelConfig,
    positions: int,
    windows: int,
    trained: Collection[str] = ("encoder", "adapter", "decoder"),
) -> Flops:
    """Model FLOPs of one row, forward and backward: 6 for each trained weight and token it meets, and causal attention.

    A frozen part needs no gradients of its weights, and none at all when nothing before it is trained. What is recomputed in
    the backward pass is not counted, and no saving for examples that do not see each other is made.
    """
    latents = windows * config.compression.window // config.compression.ratio
    head = Flops(2.0 * positions * config.decoder.width * config.decoder.vocab)
    parts = {
        "encoder": layer_flops(config.encoder, config.window_length).times(windows),
        "adapter": adapter_flops(config, latents),
        "decoder": layer_flops(config.decoder, positions) + head,
    }
    total, reached = Flops(), False  # by a gradient
    for part, forward in parts.items():
        reached |= part in trained
        total += forward.times(1 + reached + (part in trained), 1 + 2 * reached)
    return total
