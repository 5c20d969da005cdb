"""Retrieval: passages of a store that fit a question, as parts of a prompt."""

from lclm_jax.inference.retrieval.lance import LanceRetriever
from lclm_jax.inference.retrieval.passages import (
    Passage,
    Range,
    RetrievalError,
    Retriever,
    find_latents,
    retrieved_documents,
    retrieved_parts,
    split_passages,
)

__all__ = [
    "LanceRetriever",
    "Passage",
    "Range",
    "RetrievalError",
    "Retriever",
    "find_latents",
    "retrieved_documents",
    "retrieved_parts",
    "split_passages",
]
