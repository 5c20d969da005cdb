"""Inference: compress text, read prompts, generate and chat."""
