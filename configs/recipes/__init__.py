"""Data recipes: sources, streams and their shares."""

from configs.recipes import agent, fine_tuning, pretraining

__all__ = ["agent", "fine_tuning", "pretraining"]
