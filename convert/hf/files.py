"""The files of a published checkpoint: its parts, the tensors in them, and how they are written."""

import json
import math
import re
import struct
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from convert.hf.mapping import NUMPY, ConversionError
from lclm_jax.errors import FileError
from lclm_jax.files import reading

# Today's name first, then that of older releases.
DECODER, ENCODER = ("decoder", "llm"), ("encoder", "embedder")
ADAPTER = ("adapter/adapter.safetensors", "projectors/code_adapter.safetensors")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PIECE = 1 << 18  # bytes of one write to a file
AHEAD = 2  # blocks being made while another is written
SHARD = 5 * 10**9  # bytes of a file, at most, unless a single tensor is larger


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
    """A tensor known by its file's header; `read` brings its rows into memory, and no more than those."""

    key: str
    shape: tuple[int, ...]
    dtype: str  # as safetensors spells it: F32, BF16, F16, ...
    file: Path
    offset: int  # of its first byte

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows [start, stop) in the stored dtype. Not through a memory map, whose pages would count as ours."""
        dtype = NUMPY[self.dtype]
        row = math.prod(self.shape[1:])
        rows = self.shape[0] if stop is None else min(stop, self.shape[0])
        where = self.offset + start * row * dtype.itemsize
        flat = np.fromfile(self.file, np.uint8, (rows - start) * row * dtype.itemsize, offset=where)
        return flat.view(dtype).reshape(rows - start, *self.shape[1:])


@dataclass(frozen=True)
class NewTensor:
    """A tensor to be written: its blocks follow each other along the first axis, each made when it is asked for."""

    key: str
    shape: tuple[int, ...]
    dtype: str
    blocks: Sequence[Callable[[], np.ndarray]]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * NUMPY[self.dtype].itemsize


def find_published(source: str | Path) -> Published:
    """Finds the parts in `source` or, when none of them is there, in its `checkpoint_<int>` with the highest number.

    Raises FileNotFoundError that names every part that is missing.
    """
    source = Path(source)
    if not source.is_dir():
        raise FileNotFoundError(
            f"{source}: no such directory; expected a checkpoint with decoder/, encoder/ and adapter/"
        )
    root = next((root for root in [source, *_numbered(source)] if any(_parts(root))), source)
    decoder, encoder, adapter = _parts(root)
    settings = next(
        (place for place in (root, source) if (place / "model_config.json").exists()), None
    )
    named = {
        "decoder/": decoder,
        "encoder/": encoder,
        ADAPTER[0]: adapter,
        "model_config.json": settings,
    }
    missing = [name for name, path in named.items() if path is None]
    if decoder is None or encoder is None or adapter is None or settings is None:
        raise FileNotFoundError(
            f"{root}: not a complete published checkpoint, it has no {', no '.join(missing)}"
        )
    return Published(decoder, encoder, adapter, settings, source)


def _numbered(source: Path) -> list[Path]:
    numbers = {
        path: re.fullmatch(r"checkpoint_(\d+)", path.name)
        for path in source.iterdir()
        if path.is_dir()
    }
    return sorted(
        (path for path, found in numbers.items() if found),
        key=lambda path: -int(path.name.split("_")[1]),
    )


def _parts(root: Path) -> tuple[Path | None, Path | None, Path | None]:
    def first(names: tuple[str, ...]) -> Path | None:
        return next((root / name for name in names if (root / name).exists()), None)

    return first(DECODER), first(ENCODER), first(ADAPTER)


def list_tower(directory: Path) -> list[FileTensor]:
    """Every tensor of a tower, from one file or from the shards its index names; a tensor in two shards is listed twice."""
    single, index = directory / SINGLE, directory / INDEX
    if single.exists() and index.exists():
        raise ConversionError(
            f"{directory} holds both {SINGLE} and {INDEX}; remove the one that is out of date"
        )
    if single.exists():
        return list_file(single)
    if not index.exists():
        raise FileNotFoundError(
            f"{directory}: no weights; expected {SINGLE}, or {INDEX} and its shards"
        )
    return [tensor for file in _listed_shards(index) for tensor in list_file(file)]


def _listed_shards(index: Path) -> list[Path]:
    """The shards that an index names, each a regular file beside it."""
    weights = read_json(index).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise ConversionError(
            f"{index}: expected a weight_map from tensors to files, got {weights!r}"
        )
    names = list(weights.values())
    odd = [name for name in names if not isinstance(name, str) or not is_file_name(name)]
    if odd:
        raise ConversionError(
            f"{index}: expected names of files beside it in its weight_map, got {odd[0]!r}"
        )
    files = [index.with_name(name) for name in sorted(set(names))]
    absent = [file.name for file in files if not file.exists()]
    if absent:
        raise FileNotFoundError(
            f"{index.parent}: {INDEX} names shards that are not there: {', '.join(absent)}"
        )
    return files


def is_file_name(name: str) -> bool:
    """Returns whether a name is one part of a path, so that it stays in its directory."""
    return bool(name) and name not in (".", "..") and not set(name) & {"/", "\\", "\0"}


def list_file(file: Path) -> list[FileTensor]:
    """The tensors a safetensors file holds; only its header is read."""
    if not file.is_file():  # a pipe would be waited for
        raise ConversionError(f"{file} is not a regular file; copy or download it again")
    try:
        with safe_open(file, framework="np"):  # checks that the header is sound and fits the file
            pass
    except SafetensorError as error:
        raise ConversionError(
            f"{file} is not a whole safetensors file: {error}; copy or download it again"
        ) from error
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        # Keys stay pairs, for JSON would keep the last of two tensors of one name.
        pairs = json.loads(opened.read(length), object_pairs_hook=list)
    tensors = [(key, dict(fields)) for key, fields in pairs if key != "__metadata__"]
    twice = [key for key, count in Counter(key for key, _ in tensors).items() if count > 1]
    if twice:
        raise ConversionError(f"{file} holds two tensors of one name: {', '.join(twice)}")
    return [
        FileTensor(
            key,
            tuple(fields["shape"]),
            fields["dtype"],
            file,
            8 + length + fields["data_offsets"][0],
        )
        for key, fields in tensors
    ]


def write_weights(
    directory: Path, tensors: Sequence[NewTensor], shard: int = SHARD
) -> Iterator[int]:
    """Writes tensors as one file or, beyond `shard` bytes, as several with an index; yields bytes as they are written."""
    shards: list[list[NewTensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(one.size for one in shards[-1]) + tensor.size > shard:
            shards.append([])
        shards[-1].append(tensor)
    if len(shards) == 1:
        yield from write_file(directory / SINGLE, tensors)
        return
    names = [
        f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        for number in range(1, len(shards) + 1)
    ]
    for name, some in zip(names, shards, strict=True):
        yield from write_file(directory / name, some)
    weight_map = {
        tensor.key: name for name, some in zip(names, shards, strict=True) for tensor in some
    }
    write_json(
        directory / INDEX,
        {"metadata": {"total_size": sum(one.size for one in tensors)}, "weight_map": weight_map},
    )


def write_file(file: Path, tensors: Sequence[NewTensor]) -> Iterator[int]:
    """Writes a safetensors file block by block, marked as transformers expects; yields the bytes of every block.

    Format: header length as 8 bytes, a JSON header padded to 8 bytes, then the tensors as its offsets say.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        header[tensor.key] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": (end, end + tensor.size),
        }
        end += tensor.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb", buffering=0) as opened:
        opened.write(struct.pack("<Q", len(text)) + text)
        for block in ahead([block for tensor in tensors for block in tensor.blocks]):
            yield write_pieces(opened, block)
        if opened.tell() != 8 + len(text) + end:
            raise ConversionError(
                f"{file}: expected {8 + len(text) + end} bytes, wrote {opened.tell()}"
            )


def write_pieces(file: BinaryIO, block: np.ndarray) -> int:
    """Writes an array in pieces that stay in the processor's cache, several times as fast as all at once. Returns its bytes."""
    flat = np.ascontiguousarray(block).view(np.uint8).reshape(-1)
    return sum(file.write(flat[i : i + PIECE].data) for i in range(0, len(flat), PIECE))


def ahead(blocks: Sequence[Callable[[], np.ndarray]]) -> Iterator[np.ndarray]:
    """What each gives, in order, while other threads are at the next ones."""
    coming: deque[Future[np.ndarray]] = deque()
    with ThreadPoolExecutor(AHEAD) as threads:
        for block in blocks:
            coming.append(threads.submit(block))
            if len(coming) > AHEAD:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def read_json(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such file; a published checkpoint has one")
    try:
        return reading.read_json(file)
    except FileError as error:
        raise ConversionError(str(error)) from error


def write_json(file: Path, values: Mapping[str, Any]):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
