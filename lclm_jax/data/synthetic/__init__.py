"""Text that every machine has, for tests, demonstrations and benchmarks."""
