"""Loading: prepared shards to packed batches, and a survey of what they give."""

from lclm_jax.data.loading.batches import (
    PackedBatches,
    PackedIterator,
    batch_at,
    batch_origins,
    prefetch_batches,
)
from lclm_jax.data.loading.packing import (
    PackedRow,
    RowBudget,
    assemble,
    choose_row,
    fill_row,
    pack_pieces,
    write_piece,
)
from lclm_jax.data.loading.sources import PreparedSource, listed_files, read_manifest
from lclm_jax.data.loading.streams import (
    Mixture,
    StageData,
    StreamReader,
    row_budget,
    stage_directory,
)

__all__ = [
    "Mixture",
    "PackedBatches",
    "PackedIterator",
    "PackedRow",
    "PreparedSource",
    "RowBudget",
    "StageData",
    "StreamReader",
    "assemble",
    "batch_at",
    "batch_origins",
    "choose_row",
    "fill_row",
    "listed_files",
    "pack_pieces",
    "prefetch_batches",
    "read_manifest",
    "row_budget",
    "stage_directory",
    "write_piece",
]
