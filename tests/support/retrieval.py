"""An embedding that needs no model, for tests of retrieval."""

import re
import zlib

import numpy as np

WIDTH = 4096


def embed(texts):
    """Vectors [N, WIDTH] with the counts of words, which are numbered by a hash."""
    vectors = np.zeros((len(texts), WIDTH))
    for vector, text in zip(vectors, texts, strict=True):
        for word in re.findall(r"\w+", text.lower()):
            vector[zlib.crc32(word.encode()) % WIDTH] += 1
    return vectors


def write_pairs(store):
    """Add documents of pairs of words to a store; return the value of each key."""
    documents = {
        "calls.md": "calls open, created open, return search, support request, version integer",
        "files.md": "files order, path search, group request, table integer, index user",
        "data.md": "point class, field number, data string, list result, value method",
    }
    for name, pairs in documents.items():
        store.add_text(name, f"color: {pairs},")
    spelled = [pair.split() for pairs in documents.values() for pair in pairs.split(", ")]
    return dict(spelled)
