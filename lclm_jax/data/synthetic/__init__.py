"""Text that every machine can make, for tests, demonstrations and benchmarks."""
