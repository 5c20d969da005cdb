"""Proof that a conversion lost nothing: tensors byte by byte, golden cases, and torch's logits."""

from convert.verify.golden import Check, Subject, Tolerance, replay
from convert.verify.round_trip import compare_tensors

__all__ = ["Check", "Subject", "Tolerance", "compare_tensors", "replay"]
