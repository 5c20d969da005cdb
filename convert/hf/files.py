"""Files of a published checkpoint: its parts, and reading and writing their tensors."""

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

from convert.hf.mapping import NUMPY_DTYPES, ConversionError
from lclm_jax.errors import FileError
from lclm_jax.files import reading

# The current name first, then that of older releases.
DECODER, ENCODER = ("decoder", "llm"), ("encoder", "embedder")
ADAPTER = ("adapter/adapter.safetensors", "projectors/code_adapter.safetensors")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
WRITE_BYTES = 1 << 18  # of a single write to a file
PREFETCHED_BLOCKS = 2  # made while another is written
MAX_SHARD_BYTES = 5 * 10**9  # of a file, unless a single tensor is larger


@dataclass(frozen=True)
class Published:
    """Paths of the parts of a published checkpoint."""

    decoder: Path  # directories with config.json and weights
    encoder: Path
    adapter: Path  # a safetensors file
    settings: Path  # the directory of model_config.json
    source: Path  # what the user named


@dataclass(frozen=True)
class FileTensor:
    """A tensor in a safetensors file, known by its header; `read` reads some of its rows."""

    key: str
    shape: tuple[int, ...]
    dtype: str  # as safetensors spells it: F32, BF16, F16, ...
    file: Path
    offset: int  # of its first byte

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read rows [start, stop) in the stored dtype.

        There is no memory map, since its pages would count as memory of the process.
        """
        dtype = NUMPY_DTYPES[self.dtype]
        row_size = math.prod(self.shape[1:])
        rows = self.shape[0] if stop is None else min(stop, self.shape[0])
        offset = self.offset + start * row_size * dtype.itemsize
        flat = np.fromfile(
            self.file, np.uint8, (rows - start) * row_size * dtype.itemsize, offset=offset
        )
        return flat.view(dtype).reshape(rows - start, *self.shape[1:])


@dataclass(frozen=True)
class NewTensor:
    """A tensor to write, in consecutive blocks of rows that are made when they are needed."""

    key: str
    shape: tuple[int, ...]
    dtype: str
    blocks: Sequence[Callable[[], np.ndarray]]

    @property
    def size(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * NUMPY_DTYPES[self.dtype].itemsize


def find_published(source: str | Path) -> Published:
    """Find the parts in `source`, or in its `checkpoint_<int>` with the highest number.

    Raises FileNotFoundError with the name of every missing part.
    """
    source = Path(source)
    if not source.is_dir():
        raise FileNotFoundError(
            f"{source}: no such directory; expected a checkpoint with decoder/, encoder/ "
            "and adapter/"
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
        (path for path, match in numbers.items() if match),
        key=lambda path: -int(path.name.split("_")[1]),
    )


def _parts(root: Path) -> tuple[Path | None, Path | None, Path | None]:
    def first(names: tuple[str, ...]) -> Path | None:
        return next((root / name for name in names if (root / name).exists()), None)

    return first(DECODER), first(ENCODER), first(ADAPTER)


def list_tower(directory: Path) -> list[FileTensor]:
    """List the tensors of a tower, from one file or from the shards of its index.

    A tensor in two shards is listed twice.
    """
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
    """Return the shards that an index names, which must be files beside it."""
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
    """Return True if a name is a single part of a path, so that it stays in its directory."""
    return bool(name) and name not in (".", "..") and not set(name) & {"/", "\\", "\0"}


def list_file(file: Path) -> list[FileTensor]:
    """List the tensors of a safetensors file; only its header is read."""
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
    directory: Path, tensors: Sequence[NewTensor], max_bytes: int = MAX_SHARD_BYTES
) -> Iterator[int]:
    """Write tensors as one file or, beyond `max_bytes`, as several with an index.

    Yields bytes as they are written.
    """
    shards: list[list[NewTensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(other.size for other in shards[-1]) + tensor.size > max_bytes:
            shards.append([])
        shards[-1].append(tensor)
    if len(shards) == 1:
        yield from write_file(directory / SINGLE, tensors)
        return
    names = [
        f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        for number in range(1, len(shards) + 1)
    ]
    for name, shard in zip(names, shards, strict=True):
        yield from write_file(directory / name, shard)
    weight_map = {
        tensor.key: name for name, shard in zip(names, shards, strict=True) for tensor in shard
    }
    write_json(
        directory / INDEX,
        {
            "metadata": {"total_size": sum(tensor.size for tensor in tensors)},
            "weight_map": weight_map,
        },
    )


def write_file(file: Path, tensors: Sequence[NewTensor]) -> Iterator[int]:
    """Write a safetensors file block by block; yields the bytes of every block.

    Format: header length as 8 bytes, a JSON header padded to 8 bytes, then the tensors at its
    offsets.
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
        for block in prefetch([block for tensor in tensors for block in tensor.blocks]):
            yield write_array(opened, block)
        if opened.tell() != 8 + len(text) + end:
            raise ConversionError(
                f"{file}: expected {8 + len(text) + end} bytes, wrote {opened.tell()}"
            )


def write_array(file: BinaryIO, block: np.ndarray) -> int:
    """Write an array in pieces that fit the processor's cache, several times faster than at once.

    Returns its bytes.
    """
    flat = np.ascontiguousarray(block).view(np.uint8).reshape(-1)
    return sum(file.write(flat[i : i + WRITE_BYTES].data) for i in range(0, len(flat), WRITE_BYTES))


def prefetch(blocks: Sequence[Callable[[], np.ndarray]]) -> Iterator[np.ndarray]:
    """Yield the results in order, while other threads compute the next ones."""
    pending: deque[Future[np.ndarray]] = deque()
    with ThreadPoolExecutor(PREFETCHED_BLOCKS) as threads:
        for block in blocks:
            pending.append(threads.submit(block))
            if len(pending) > PREFETCHED_BLOCKS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object. Raises FileNotFoundError, or ConversionError for invalid content."""
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such file; a published checkpoint has one")
    try:
        return reading.read_json(file)
    except FileError as error:
        raise ConversionError(str(error)) from error


def write_json(file: Path, values: Mapping[str, Any]):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
