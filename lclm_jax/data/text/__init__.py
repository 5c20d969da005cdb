"""Text to tokens: tokenizers, and how control tokens are kept out of text."""
