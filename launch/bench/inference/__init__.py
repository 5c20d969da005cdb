"""The benchmark of inference: what compression, stores and kept caches save."""
