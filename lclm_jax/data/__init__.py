"""Data: from what people wrote to packed batches."""
