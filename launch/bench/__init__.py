"""Benchmarks: CPU speed beside PyTorch, data, the converter, capacity and one accelerator."""
