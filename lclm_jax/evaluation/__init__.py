"""Evaluation of trained models on documents they have not seen."""
