"""Benchmark that checks correctness and measures speed on one accelerator."""
