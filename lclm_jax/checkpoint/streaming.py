"""Parameters too large for memory: streamed into an Orbax checkpoint, and read from any by rows.

Orbax writes the checkpoint as always (names, metadata, atomic end); only the leaves are written
here. They become zarr arrays without compression, one layer per chunk, so that restoring a layer
takes one read, on any mesh.
"""

import asyncio
import ctypes
import json
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore as ts
from orbax.checkpoint import v1 as ocp
from orbax.checkpoint.experimental.v1._src.serialization import registry

CHUNK_BYTES = 64 << 20  # of a chunk on disk, and of a block in memory
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # names in malloc.h
WILDCARDS = "*?["
MAX_PENDING_WRITES = 2  # blocks on their way to disk while the next one is read


def keep_memory():
    """Make this process reuse the memory of freed blocks; call it before streaming.

    By default glibc returns every large block to the kernel, which then clears the pages of the
    next one, and the arenas of other threads return theirs whatever the threshold: that took longer
    than reading the weights. Does nothing where the C library has no such setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@dataclass(frozen=True)
class Streamed:
    """A leaf of a tree to be saved, of which `read(start, stop)` returns rows of the first axis."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[int, int], np.ndarray]

    @property
    def chunk(self) -> tuple[int, ...]:
        """Shape of a chunk: as many rows as fit CHUNK_BYTES.

        A row that does not fit, such as a layer's matrix, is cut along its own first axis.
        """
        row, rank = math.prod(self.shape[1:]) * self.dtype.itemsize, len(self.shape)
        if row <= CHUNK_BYTES or rank < 3:
            return (max(1, min(self.shape[0], CHUNK_BYTES // max(row, 1))), *self.shape[1:])
        return (1, -(-self.shape[1] // -(-row // CHUNK_BYTES)), *self.shape[2:])

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, rows), chunk by chunk."""
        step = self.chunk[0]
        for start in range(0, self.shape[0], step):
            yield start, self.read(start, min(start + step, self.shape[0]))

    def to_array(self, sharding: jax.sharding.Sharding) -> jax.Array:
        """Read the leaf into a sharded array, block by block.

        Each block is copied to the local shards that contain it, and then freed.
        """
        where = sharding.addressable_devices_indices_map(self.shape)
        bounds = {
            device: [s.indices(n)[:2] for s, n in zip(index, self.shape, strict=True)]
            for device, index in where.items()
            if index is not None
        }
        shards = {
            tuple(box): np.empty([stop - start for start, stop in box], self.dtype)
            for box in bounds.values()
        }
        for first, block in self.blocks():
            for (rows, *others), shard in ((box, shard) for box, shard in shards.items()):
                start, stop = max(first, rows[0]), min(first + len(block), rows[1])
                if start < stop:
                    part = block[
                        (slice(start - first, stop - first), *(slice(*bound) for bound in others))
                    ]
                    shard[start - rows[0] : stop - rows[0]] = part
        local = [jax.device_put(shards[tuple(box)], device) for device, box in bounds.items()]
        return jax.make_array_from_single_device_arrays(self.shape, sharding, local)


class _Handler:
    """The handler by which Orbax saves streamed leaves; they are restored as ordinary arrays.

    An error of a reader leaves the step unfinished.
    """

    def __init__(self, *, context: Any = None):
        pass

    async def serialize(self, params, serialization_context):
        async def write():
            directory = await serialization_context.parent_dir.await_creation()
            await asyncio.to_thread(_write_leaves, Path(directory), params)

        return write()


class _Abstract:
    """The abstract leaf type that Orbax requires beside every leaf type; never loaded."""


def _write_leaves(directory: Path, params: Any):
    pending: deque[Any] = deque()
    for param in params:
        leaf: Streamed = param.value
        array = _create(directory / param.name, leaf)
        for start, block in leaf.blocks():
            while len(pending) >= MAX_PENDING_WRITES:
                pending.popleft().result()
            written = array[start : start + len(block)].write(
                block, can_reference_source_data_indefinitely=True
            )
            pending.append(written)
    while pending:
        pending.popleft().result()


def _create(path: Path, leaf: Streamed) -> Any:
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{path}/"},
        "dtype": leaf.dtype.name,
        # Otherwise a chunk of zeros is not written, and the reader misses it.
        "store_data_equal_to_fill_value": True,
        "metadata": {
            "shape": leaf.shape,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": leaf.chunk}},
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        },
    }
    return ts.open(spec, create=True).result()


class _StreamingTree:
    """A factory of plain PyTreeHandlers that also accept Streamed leaves.

    The checkpoint then names the plain handler, so that any Orbax can read it.
    """

    def __new__(cls):
        leaves = registry.StandardLeafHandlerRegistry()
        leaves.add(
            Streamed,
            _Abstract,
            _Handler,  # pyright: ignore[reportArgumentType]  # it only saves
            secondary_typestrs=["np.ndarray"],
        )
        return ocp.handlers.PyTreeHandler(leaf_handler_registry=leaves)


def saving(trees: dict[str, Any], directory: Path) -> ocp.Context:
    """Return a context in which Orbax saves these trees so that single layers can be read.

    Leaves may be Streamed. Orbax joins the parts of an OCDBT store by a glob over the whole path:
    below a directory with wildcards in its name it would find none, or those of another run. There
    each array has its own files instead.
    """
    context = ocp.Context()
    context.array.saving.use_ocdbt = not set(WILDCARDS) & set(str(directory))
    context.array.saving.scoped_storage_options_creator = _by_rows
    registered = ocp.handlers.local_registry()
    for name, tree in trees.items():
        if any(isinstance(leaf, Streamed) for leaf in jax.tree.leaves(tree)):
            registered.add(
                _StreamingTree,  # pyright: ignore[reportArgumentType]  # it makes handlers
                checkpointable_name=name,
            )
            context.array.saving.use_ocdbt = False
            context.asynchronous.timeout_secs = 24 * 3600
    context.checkpointables.registry = registered
    return context


def _by_rows(
    key: tuple[Any, ...], value: Any
) -> ocp.options.ArrayOptions.Saving.StorageOptions | None:
    """Chunk an array in memory along its first axis, as Streamed leaves are chunked."""
    if len(getattr(value, "shape", ())) < 2:
        return None
    return ocp.options.ArrayOptions.Saving.StorageOptions(
        chunk_byte_size=CHUNK_BYTES, shard_axes=(0,)
    )


@dataclass(frozen=True)
class SavedTree:
    """A saved tree, `<directory>/checkpoints/<step>/<name>`, whose arrays are opened one by one."""

    directory: Path

    @cached_property
    def _metadata(self) -> dict[str, Any]:
        return json.loads((self.directory / "_METADATA").read_text(encoding="utf-8"))

    def open(self, path: str) -> ts.TensorStore:
        """Open the array at `path` ("decoder/table") as a tensorstore: index it, then read."""
        name, directory = path.replace("/", "."), self.directory.resolve()
        if self._metadata["use_ocdbt"]:
            base = {"driver": "file", "path": f"{directory}/"}
            store = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
        else:
            store = {"driver": "file", "path": f"{directory}/{name}/"}
        spec = {"driver": "zarr3" if self._metadata["use_zarr3"] else "zarr", "kvstore": store}
        # Memory maps save a copy, and the kernel has no pages to clear.
        spec["context"] = {"file_io_mode": {"mode": "memmap"}}
        return ts.open({**spec, "fill_missing_data_reads": False}, open=True, read=True).result()
