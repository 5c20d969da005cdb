"""Conversion between the published Hugging Face layout and our checkpoints, in both directions."""
