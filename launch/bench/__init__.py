"""Benchmarks: beside PyTorch on a CPU (`python -m launch.bench`), of data, and of an accelerator."""
