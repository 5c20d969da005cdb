"""The split of attention over a mesh: queries by rows, positions and heads.

Every query meets all of its keys.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from lclm_jax.distributed.sharding import to_spec
from lclm_jax.typing import Array

SAVED = "attended"  # name of the arrays that remat policies keep of attention
RowAxes = tuple[str, str | None]  # logical axes of the rows and of their positions
Backend = Callable[..., Array]  # (q, k, v, places, causal, axes) -> [B T N H]
Specs = tuple[Any, ...]  # of trees of arrays; a spec in place of a tree is that of its arrays


def sequence_specs(axes: RowAxes) -> tuple[Specs, PartitionSpec]:
    """Return the specs of sequences that attend to themselves, and of the result.

    They are those of (q, k, v, places of the queries, places of the keys).
    """
    rows, length = axes
    query = to_spec((rows, length, "heads", "head_dim"))
    key = to_spec((rows, "kv_heads", None, "head_dim"))
    query_place, key_place = to_spec((rows, length)), to_spec((rows, None))
    return (query, key, key, query_place, key_place), query


def on_shards(function: Callable[..., Any], specs: Specs, out: Any) -> Callable[..., Any]:
    """Let a function run on every device's part of the arrays.

    Without a mesh in scope the function is returned as it is.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return function
    return jax.shard_map(function, in_specs=specs, out_specs=out, check_vma=False)
