"""The files of a published checkpoint: where its parts lie, the tensors in them, and writing a directory whole or not at all."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (numpy knows bfloat16 once this is imported)
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from convert.mapping import ConversionError

# Today's name first, then that of older releases.
DECODER, ENCODER = ("decoder", "llm"), ("encoder", "embedder")
ADAPTER = ("adapter/adapter.safetensors", "projectors/code_adapter.safetensors")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Published:
    """The parts of one published checkpoint."""

    decoder: Path  # directories with config.json and weights
    encoder: Path
    adapter: Path  # a safetensors file
    settings: Path  # the directory of model_config.json
    source: Path  # what the user named


@dataclass(frozen=True)
class FileTensor:
    """A tensor known by its file's header; `load` reads it."""

    key: str
    shape: tuple[int, ...]
    dtype: str  # as safetensors spells it: F32, BF16, F16, ...
    file: Path

    def load(self) -> np.ndarray:
        """The weights in float32."""
        with safe_open(self.file, framework="np") as tensors:
            return tensors.get_tensor(self.key).astype(np.float32)


def find_published(source: str | Path) -> Published:
    """Finds the parts in `source` or, when none of them is there, in its `checkpoint_<int>` with the highest number.

    Raises FileNotFoundError that names every part that is missing.
    """
    source = Path(source)
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: no such directory; expected a checkpoint with decoder/, encoder/ and adapter/")
    root = next((root for root in [source, *_numbered(source)] if any(_parts(root))), source)
    decoder, encoder, adapter = _parts(root)
    settings = next((place for place in (root, source) if (place / "model_config.json").exists()), None)
    named = {"decoder/": decoder, "encoder/": encoder, ADAPTER[0]: adapter, "model_config.json": settings}
    missing = [name for name, path in named.items() if path is None]
    if decoder is None or encoder is None or adapter is None or settings is None:
        raise FileNotFoundError(f"{root}: not a complete published checkpoint, it has no {', no '.join(missing)}")
    return Published(decoder, encoder, adapter, settings, source)


def _numbered(source: Path) -> list[Path]:
    numbers = {path: re.fullmatch(r"checkpoint_(\d+)", path.name) for path in source.iterdir() if path.is_dir()}
    return sorted((path for path, found in numbers.items() if found), key=lambda path: -int(path.name.split("_")[1]))


def _parts(root: Path) -> tuple[Path | None, Path | None, Path | None]:
    def first(names: tuple[str, ...]) -> Path | None:
        return next((root / name for name in names if (root / name).exists()), None)

    return first(DECODER), first(ENCODER), first(ADAPTER)


def list_tower(directory: Path) -> list[FileTensor]:
    """Every tensor of a tower, from one file or from the shards its index names; a tensor in two shards is listed twice."""
    single, index = directory / SINGLE, directory / INDEX
    if single.exists() and index.exists():
        raise ConversionError(f"{directory} holds both {SINGLE} and {INDEX}; remove the one that is out of date")
    if single.exists():
        return list_file(single)
    if not index.exists():
        raise FileNotFoundError(f"{directory}: no weights; expected {SINGLE}, or {INDEX} and its shards")
    shards = sorted(set(read_json(index).get("weight_map", {}).values()))
    absent = [name for name in shards if not (directory / name).exists()]
    if absent:
        raise FileNotFoundError(f"{directory}: {INDEX} names shards that are not there: {', '.join(absent)}")
    return [tensor for name in shards for tensor in list_file(directory / name)]


def list_file(file: Path) -> list[FileTensor]:
    """The tensors a safetensors file holds; only its header is read."""
    try:
        with safe_open(file, framework="np") as tensors:
            slices = {key: tensors.get_slice(key) for key in tensors.keys()}  # noqa: SIM118  (not a dict)
            return [FileTensor(key, tuple(one.get_shape()), one.get_dtype(), file) for key, one in slices.items()]
    except SafetensorError as error:
        raise ConversionError(f"{file} is not a whole safetensors file: {error}; copy or download it again") from error


def write_tensors(file: Path, tensors: dict[str, np.ndarray]):
    """Writes contiguous arrays, marked as transformers expects. Raises ConversionError when the disk does not take them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:
        raise ConversionError(f"could not write {file}: {error}; free some space or name another destination") from error


def read_json(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such file; a published checkpoint has one")
    try:
        values = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ConversionError(f"{file} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConversionError(f"{file}: expected a JSON object, got {type(values).__name__}")
    return values


def write_json(file: Path, values: Mapping[str, Any]):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values, indent=2) + "\n")


@contextmanager
def new_directory(destination: str | Path) -> Iterator[Path]:
    """A directory to write into that takes its name, `destination`, only when the block ends without an error.

    It is called `<destination>.partial` until then; one left by a killed run is replaced.
    Raises FileExistsError when `destination` is there already.
    """
    destination = Path(destination)
    if destination.exists():
        raise FileExistsError(f"{destination} exists; name a new directory or remove it first")
    partial = destination.with_name(destination.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
