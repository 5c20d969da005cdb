"""Attention: the layer, its cache, and a back end for each kind of chip."""

from lclm_jax.model.attention.cache import CACHE_AXES, Cache
from lclm_jax.model.attention.dispatch import attend, attend_after
from lclm_jax.model.attention.layer import Attention
from lclm_jax.model.attention.shards import SAVED, RowAxes

__all__ = ["CACHE_AXES", "SAVED", "Attention", "Cache", "RowAxes", "attend", "attend_after"]
