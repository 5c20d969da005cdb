"""Compressed documents on disk: each window is encoded once, for every process and prompt."""

from lclm_jax.inference.store.documents import StoredLatents
from lclm_jax.inference.store.entries import Entry
from lclm_jax.inference.store.objects import StoreError
from lclm_jax.inference.store.store import Store, open_store

__all__ = ["Entry", "Store", "StoreError", "StoredLatents", "open_store"]
