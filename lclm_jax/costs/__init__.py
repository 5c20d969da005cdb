"""Cost of a model in FLOPs and cache bytes, and the published speeds of accelerators.

Training derives its MFU from these; `lclm_jax.capacity` derives its estimates.
"""

from lclm_jax.costs.chips import CHIPS, Chip, Slice, SliceError, find_chip, parse_slice
from lclm_jax.costs.work import (
    Cost,
    Flops,
    adapter_flops,
    cache_bytes,
    compressed_cost,
    layer_flops,
    training_flops,
    uncompressed_cost,
)

__all__ = [
    "CHIPS",
    "Chip",
    "Cost",
    "Flops",
    "Slice",
    "SliceError",
    "adapter_flops",
    "cache_bytes",
    "compressed_cost",
    "find_chip",
    "layer_flops",
    "parse_slice",
    "training_flops",
    "uncompressed_cost",
]
