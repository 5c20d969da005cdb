"""Retrieval: passages of a store that fit a question, as parts of a prompt."""

from lclm_jax.inference.retrieval.lance import LanceRetriever
from lclm_jax.inference.retrieval.passages import (
    Passage,
    RetrievalError,
    Retriever,
    retrieved_documents,
    retrieved_parts,
    split_passages,
)

__all__ = [
    "LanceRetriever",
    "Passage",
    "RetrievalError",
    "Retriever",
    "retrieved_documents",
    "retrieved_parts",
    "split_passages",
]
