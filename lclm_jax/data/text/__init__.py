"""Text to tokens: tokenizers, and how control tokens are kept out of text.

`find_tokenizer` looks a tokenizer up by name.
"""

from lclm_jax.data.text.split_points import split_text
from lclm_jax.data.text.tokenizer import (
    MEMORY_END,
    MEMORY_SLOT,
    MEMORY_START,
    PAD,
    TURN_END,
    TURN_START,
    MemoryTokens,
    Tokenizer,
    add_memory_tokens,
)

__all__ = [
    "MEMORY_END",
    "MEMORY_SLOT",
    "MEMORY_START",
    "PAD",
    "TURN_END",
    "TURN_START",
    "MemoryTokens",
    "Tokenizer",
    "add_memory_tokens",
    "split_text",
]
