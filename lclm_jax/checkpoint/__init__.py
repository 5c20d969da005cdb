"""Checkpoints on disk: steps of a run, weights larger than memory, and whether they are intact."""
