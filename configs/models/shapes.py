"""Shapes of the Qwen3 family, with the numbers of their Hugging Face configs."""

from dataclasses import replace

from lclm_jax.config import TransformerConfig

QWEN3_0P6B = TransformerConfig(
    vocab=151936,
    width=1024,
    layers=28,
    heads=16,
    kv_heads=8,
    head_dim=128,
    mlp=3072,
    rope_theta=1e6,
    max_positions=40960,
    initializer_range=0.02,
)
QWEN3_1P7B = replace(QWEN3_0P6B, width=2048, mlp=6144)
QWEN3_4B = replace(QWEN3_0P6B, width=2560, layers=36, heads=32, mlp=9728)
QWEN3_8B = replace(QWEN3_4B, width=4096, mlp=12288, tied=False)
QWEN3_EMBEDDING_0P6B = replace(QWEN3_0P6B, vocab=151669, max_positions=32768)
QWEN3_EMBEDDING_4B = replace(QWEN3_4B, vocab=151665)
QWEN3_4B_INSTRUCT_2507 = replace(QWEN3_4B, rope_theta=5e6, max_positions=262144)

SHAPES = {
    "qwen3-0.6b": QWEN3_0P6B,
    "qwen3-1.7b": QWEN3_1P7B,
    "qwen3-4b": QWEN3_4B,
    "qwen3-8b": QWEN3_8B,
    "qwen3-embedding-0.6b": QWEN3_EMBEDDING_0P6B,
    "qwen3-embedding-4b": QWEN3_EMBEDDING_4B,
    "qwen3-4b-instruct-2507": QWEN3_4B_INSTRUCT_2507,
}


def with_memory_tokens(decoder: TransformerConfig, text_vocab: int = 151669) -> TransformerConfig:
    """Return the decoder with a vocabulary of the text tokens and the three memory tokens."""
    return replace(decoder, vocab=text_vocab + 3)
