"""Attention that makes all scores at once, which every other back end must equal."""

import jax

from lclm_jax.batch import Places
from lclm_jax.model.attention.shards import RowAxes
from lclm_jax.model.masks import attention_mask
from lclm_jax.typing import Array


def attend_reference(q, k, v, places: Places, causal: bool, axes: RowAxes | None = None) -> Array:
    """Compute the attention of sequences [B T N H] to themselves; keys and values are [B K T H]."""
    return attend_dense(q, k, v, places, places, causal)


def attend_dense(q, k, v, queries: Places, keys: Places, causal: bool) -> Array:
    """Compute the attention of queries [B T N H] to other keys and values [B K S H]."""
    mask = attention_mask(queries, keys, causal)[:, None]
    return jax.nn.dot_product_attention(q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask=mask)
