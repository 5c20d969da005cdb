"""Shapes of the Qwen3 family, by the numbers of their Hugging Face configs."""

from dataclasses import replace

from lclm_jax.config import TransformerConfig

QWEN3_EMBEDDING_0P6B = TransformerConfig(
    vocab=151669, width=1024, layers=28, heads=16, kv_heads=8, head_dim=128, mlp=3072, rope_theta=1e6, max_positions=32768
)
QWEN3_4B_INSTRUCT_2507 = TransformerConfig(
    vocab=151936, width=2560, layers=36, heads=32, kv_heads=8, head_dim=128, mlp=9728, rope_theta=5e6, max_positions=262144
)


def with_memory_tokens(decoder: TransformerConfig, text_vocab: int = 151669) -> TransformerConfig:
    """The decoder with its table cut or grown to the tokenizer's entries and the three memory tokens after them."""
    return replace(decoder, vocab=text_vocab + 3)
