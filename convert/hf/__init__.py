"""The published checkpoint format: its files, settings, tensors, tokenizers and provenance."""

from convert.hf.config import read_compression, read_model_config, read_tower
from convert.hf.files import Published, find_published, list_file, list_tower
from convert.hf.mapping import ConversionError, find_sources, published_tensors

__all__ = [
    "ConversionError",
    "Published",
    "find_published",
    "find_sources",
    "list_file",
    "list_tower",
    "published_tensors",
    "read_compression",
    "read_model_config",
    "read_tower",
]
