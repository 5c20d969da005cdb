"""The input pipeline: shards to packed batches, and a survey of what it yields."""
