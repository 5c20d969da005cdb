"""Converts a checkpoint of lclm_jax to the published layout.

python -m convert.to_hf CHECKPOINT DESTINATION
"""

import math
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from convert.hf.config import write_compression, write_generation, write_tower
from convert.hf.files import (
    ADAPTER,
    NewTensor,
    read_json,
    write_file,
    write_json,
    write_weights,
)
from convert.hf.mapping import (
    COPIES,
    NUMPY_DTYPES,
    ConversionError,
    Tensor,
    published_tensors,
    to_published,
)
from convert.hf.provenance import ORIGINALS, PROVENANCE
from convert.hf.tokenizer import without_memory
from lclm_jax.checkpoint.model_files import read_model
from lclm_jax.checkpoint.steps import saved_params
from lclm_jax.checkpoint.streaming import CHUNK_BYTES, SavedTree, keep_memory
from lclm_jax.cli import make_parser, path, run, setting
from lclm_jax.config import ModelConfig
from lclm_jax.config.settings import Count
from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.distributed.sharding import one_device
from lclm_jax.files.directories import new_directory
from lclm_jax.model.params import abstract_params, parameter_shapes
from lclm_jax.progress import progress_bar

TOWERS = ("decoder", "encoder")
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # by the names of config.json


@dataclass(frozen=True)
class Saved:
    """A checkpoint of lclm_jax whose parameters are not read yet."""

    directory: Path
    config: ModelConfig
    params: SavedTree
    provenance: dict[str, Any]  # of a converted checkpoint; empty for a training run

    @classmethod
    def open(cls, directory: str | Path, step: int | None = None) -> "Saved":
        """Open a step of a checkpoint, by default the newest.

        Raises FileNotFoundError if it is missing, CheckpointError if it does not match its config.
        """
        directory = Path(directory)
        config = read_model(directory)
        params = saved_params(directory, abstract_params(config, one_device()), step)
        file = directory / PROVENANCE
        return cls(directory, config, params, read_json(file) if file.exists() else {})

    @cached_property
    def tensors(self) -> list[Tensor]:
        """Tensors that the checkpoint publishes, without copies of others."""
        return published_tensors(parameter_shapes(self.config))

    def dtype(self, tensor: Tensor) -> str:
        """Return the dtype a tensor was published in or, in a training run, is saved in."""
        stored = self.provenance.get("tensors", {}).get(tensor.part, {}).get(tensor.key)
        return stored or next(
            name
            for name, dtype in NUMPY_DTYPES.items()
            if dtype == self.params.open(tensor.path).dtype.numpy_dtype
        )

    def blocks(self, tensor: Tensor, dtype: str) -> list[Callable[[], np.ndarray]]:
        """Return functions that each read a block of rows of the tensor as published."""
        rows, step = tensor.shape[0], tensor.shape[0]
        if tensor.layer is None and tensor.transform == "none":
            step = max(
                1, CHUNK_BYTES // max(1, NUMPY_DTYPES[dtype].itemsize * math.prod(tensor.shape[1:]))
            )
        return [
            partial(self._read, tensor, dtype, start, min(start + step, rows))
            for start in range(0, rows, step)
        ]

    def _read(self, tensor: Tensor, dtype: str, start: int, stop: int) -> np.ndarray:
        array = self.params.open(tensor.path)
        if tensor.layer is not None:
            array = array[tensor.layer]
        if tensor.transform == "none":
            array = array[start:stop]
        return to_published(round_to(array.read().result(), dtype, tensor), tensor.transform)


def to_hf(
    checkpoint: str | Path,
    destination: str | Path,
    step: int | None = None,
    dtype: str | None = None,
) -> Path:
    """Convert a training run, or a checkpoint from `from_hf`, to the published layout.

    Takes the newest step unless `step` is given. Tensors keep the dtypes they were published or
    saved in unless `dtype` (float32, bfloat16 or float16) is given. Returns `destination`. Raises
    the errors of `Saved.open`, ConversionError for a number that `dtype` cannot represent,
    FileExistsError when the destination exists; nothing is written then.
    """
    with new_directory(destination, checkpoint) as directory:
        saved = Saved.open(checkpoint, step)
        parts = new_tensors(saved, dtype)
        total = sum(tensor.size for tensors in parts.values() for tensor in tensors)
        with progress_bar("writing MB", total // 10**6) as show:
            done = 0
            for size in write_parts(directory, parts):
                done += size
                show(done // 10**6, "")
        write_settings(directory, saved, parts, dtype)
    return Path(destination)


def new_tensors(saved: Saved, dtype: str | None) -> dict[str, list[NewTensor]]:
    """Return the tensors of each part in the order of writing, with the copies the source had."""
    parts: dict[str, list[NewTensor]] = {"decoder": [], "encoder": [], "adapter": []}
    for tensor in saved.tensors:
        name = DTYPES[dtype] if dtype else saved.dtype(tensor)
        parts[tensor.part].append(
            NewTensor(tensor.key, tensor.shape, name, saved.blocks(tensor, name))
        )
    for part, copy in saved.provenance.get("copies", []):
        original = next(tensor for tensor in parts[part] if tensor.key == COPIES[part, copy])
        parts[part].append(replace(original, key=copy))
    return parts


def write_parts(directory: Path, parts: dict[str, list[NewTensor]]) -> Iterator[int]:
    """Write the weights of all parts; yields bytes as they are written."""
    for part in TOWERS:
        yield from write_weights(directory / part, parts[part])
    yield from write_file(directory / ADAPTER[0], parts["adapter"])


def round_to(array: np.ndarray, dtype: str, tensor: Tensor) -> np.ndarray:
    """Round an array to another dtype, to nearest.

    Raises ConversionError where a finite number would become infinite.
    """
    if array.dtype == NUMPY_DTYPES[dtype]:
        return array
    with np.errstate(over="ignore"):
        rounded = array.astype(NUMPY_DTYPES[dtype])
    narrower = ml_dtypes.finfo(array.dtype).max > ml_dtypes.finfo(NUMPY_DTYPES[dtype]).max
    if narrower and not np.array_equal(np.isfinite(array), np.isfinite(rounded)):
        largest = float(np.abs(array.astype(np.float32)).max())
        raise ConversionError(
            f"{tensor.part} {tensor.key} reaches {largest:g}, too much for {dtype}; "
            "choose another --dtype"
        )
    return rounded


def write_settings(
    directory: Path, saved: Saved, parts: dict[str, list[NewTensor]], dtype: str | None
):
    """Write settings and tokenizers: the source's own files, or new ones for a training run."""
    originals = saved.directory / ORIGINALS
    if originals.exists():
        _copy_files(originals, directory)
    else:
        _write_towers(directory, saved, parts)
    if dtype:
        for part in TOWERS:
            file = directory / part / "config.json"
            values = read_json(file)
            write_json(file, {**values, "dtype" if "dtype" in values else "torch_dtype": dtype})
    model, processor = write_compression(saved.config)
    write_json(directory / "model_config.json", model)
    if not (directory / "processor_config.json").exists():
        write_json(directory / "processor_config.json", processor)


def _copy_files(source: Path, directory: Path):
    """Copy files without their permissions, which may be those of a read-only checkpoint."""
    for file in source.rglob("*"):
        if file.is_file():
            place = directory / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


def _write_towers(directory: Path, saved: Saved, parts: dict[str, list[NewTensor]]):
    tokenizer = Tokenizer.load(saved.directory / "tokenizer")
    for part, part_tokenizer in (("decoder", tokenizer), ("encoder", without_memory(tokenizer))):
        dtypes = {tensor.dtype for tensor in parts[part]}
        name = next((name for name, dtype in DTYPES.items() if dtypes == {dtype}), "float32")
        tower = write_tower(getattr(saved.config, part), part, name, part_tokenizer)
        part_tokenizer.save(directory / part)
        write_json(directory / part / "config.json", tower)
        write_json(directory / part / "generation_config.json", write_generation(part_tokenizer))


def main():
    parser = make_parser(__doc__)
    parser.add_argument(
        "checkpoint",
        type=path,
        help="directory of a training run, or a checkpoint from convert.from_hf",
    )
    parser.add_argument("destination", type=path, help="new directory for the published layout")
    parser.add_argument(
        "--step", type=setting(Count), help="saved step to convert (default: the newest)"
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="dtype of every tensor (default: as published, or as saved in training)",
    )
    arguments = parser.parse_args()
    keep_memory()
    jax.config.update(
        "jax_platforms", "cpu"
    )  # moving numbers needs no accelerator, and would lock it
    written = to_hf(arguments.checkpoint, arguments.destination, arguments.step, arguments.dtype)
    sys.stdout.write(f"wrote {written.resolve()}\n")


if __name__ == "__main__":
    run(main)
