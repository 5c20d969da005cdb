"""How attention is split over a mesh: queries by rows, positions and heads; every query meets all of its keys."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from lclm_jax.batch import Places
from lclm_jax.distributed.sharding import to_spec
from lclm_jax.typing import Array

SAVED = "attended"  # name of the arrays that remat policies keep of attention
RowAxes = tuple[str, str | None]  # logical axes of the rows and of their positions
Backend = Callable[..., Array]  # (q, k, v, places, causal, axes) -> [B T N H]
Specs = tuple[Any, ...]


def sequence_specs(axes: RowAxes) -> tuple[Specs, PartitionSpec]:
    """Specs of (q, k, v, places of the queries, places of the keys), and of the result, for a
    sequence that attends to itself."""
    rows, length = axes
    query = to_spec((rows, length, "heads", "head_dim"))
    key = to_spec((rows, "kv_heads", None, "head_dim"))
    at_query, at_key = to_spec((rows, length)), to_spec((rows, None))
    return (query, key, key, Places(at_query, at_query), Places(at_key, at_key)), query


def on_shards(local: Callable[..., Any], specs: Specs, out: Any) -> Callable[..., Any]:
    """Runs `local` on every device's part of the arrays; without a mesh in scope, on all of them."""
    if jax.sharding.get_abstract_mesh().empty:
        return local
    return jax.shard_map(local, in_specs=specs, out_specs=out, check_vma=False)
