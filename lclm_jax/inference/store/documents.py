"""Writing and reading of one document of a store: its windows, its text and its index."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np

from lclm_jax.config import ModelConfig
from lclm_jax.data.records import ContextPiece, latent_starts
from lclm_jax.distributed.sharding import replicate
from lclm_jax.inference.compressor import Compressor
from lclm_jax.inference.latents import (
    BlockSlice,
    Latents,
    LatentStarts,
    check_finite,
    starts_of_latents,
)
from lclm_jax.inference.store.entries import Entry
from lclm_jax.inference.store.objects import Objects, StoreError, pack_arrays, unpack_arrays
from lclm_jax.inference.store.windows import (
    Precision,
    StoredWindow,
    pack_window,
    unpack_window,
    window_key,
)
from lclm_jax.typing import Array

# Windows per encoder pass. It is one number, so that a window's latents do not depend, by rounding,
# on the windows encoded beside it; with four, appending is quick and long texts keep a chip busy.
PASS_WINDOWS = 4
WINDOWS_AT_ONCE = 64  # looked up, encoded and written together; bounds host memory


@dataclass(frozen=True)
class Index:
    """The windows of a document and the first character of each latent."""

    keys: Sequence[str]
    counts: np.ndarray  # [windows], latents of each
    characters: np.ndarray  # [M]

    def to_bytes(self) -> bytes:
        """Return the index as the bytes of an object."""
        keys = np.frombuffer("\n".join(self.keys).encode(), np.uint8)
        return pack_arrays(
            {
                "keys": keys,
                "counts": self.counts.astype(np.int64),
                "characters": self.characters.astype(np.int64),
            }
        )

    @classmethod
    def from_bytes(cls, value: bytes) -> "Index":
        """Return the index of `to_bytes`. Raises StoreError for damaged bytes."""
        arrays = unpack_arrays(value)
        if set(arrays) != {"keys", "counts", "characters"}:
            raise StoreError(f"expected the index of a document, got arrays {sorted(arrays)}")
        keys = arrays["keys"].tobytes().decode().split("\n")
        return cls(keys, arrays["counts"], arrays["characters"])


class WindowWriter:
    """Writes the windows of one document; those that the store has are not encoded again.

    `new` are keys of windows that were encoded for this document or others, and have not been
    counted; those of this document are taken out.
    """

    def __init__(
        self,
        objects: Objects,
        compressor: Compressor,
        model_id: str,
        ratio: int,
        precision: Precision,
        new: set[str] | None = None,
    ):
        self.objects, self.compressor, self.model_id = objects, compressor, model_id
        self.ratio = ratio
        self.precision: Precision = precision
        self.encoded = self.reused = 0
        self._new = set() if new is None else new
        self._keys: list[str] = []
        self._counts: list[int] = []
        self._offsets: list[np.ndarray] = []
        self._squared_error = self._squares = 0.0

    def write(self, parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> Index:
        """Write the windows of a text, whose tokens [T] and characters [T, 2] arrive in parts.

        Raises LatentsError if latents are NaN or infinite, and StoreError if they cannot be
        written.
        """
        pieces = self.compressor.cut(self._tokens_of(parts), self.ratio)
        while batch := list(islice(pieces, WINDOWS_AT_ONCE)):
            self._write_batch(batch)
        offsets = np.concatenate(self._offsets)
        starts = starts_of_latents(offsets, self.compressor.config, self.ratio)
        return Index(self._keys, np.array(self._counts), starts.characters)

    @property
    def tokens(self) -> int:
        """Tokens of the text."""
        return sum(map(len, self._offsets))

    @property
    def error(self) -> float:
        """Root mean square of what rounding changed, as a share of that of the latents."""
        return (self._squared_error / self._squares) ** 0.5 if self._squares else 0.0

    def _tokens_of(self, parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[np.ndarray]:
        for tokens, offsets in parts:
            self._offsets.append(offsets)
            yield tokens

    def _write_batch(self, pieces: Sequence[ContextPiece]):
        keys = [window_key(piece, self.model_id, self.precision) for piece in pieces]
        pieces_by_key = dict(zip(keys, pieces, strict=True))
        windows, encoded = encode_missing(
            self.objects, self.compressor, self.precision, pieces_by_key
        )
        new = encoded | (self._new & windows.keys())
        self._new -= new

        self.encoded += len(new)
        self.reused += len(pieces) - len(new)
        self._keys += keys
        self._counts += [piece.latents for piece in pieces]
        for key in keys:
            self._squared_error += windows[key].squared_error
            self._squares += windows[key].squares


def encode_missing(
    objects: Objects,
    compressor: Compressor,
    precision: Precision,
    pieces: Mapping[str, ContextPiece],
) -> tuple[dict[str, StoredWindow], set[str]]:
    """Encode and write windows, given by key, that the store does not have or that are damaged.

    Returns all windows, and the keys of those that were encoded. Raises LatentsError if latents are
    NaN or infinite, and StoreError if they cannot be written.
    """
    windows = read_windows(objects, list(pieces))
    known = {key: window for key, window in windows.items() if window is not None}
    missing = {key: piece for key, piece in pieces.items() if key not in known}
    blocks = list(compressor.encode(missing.values(), (PASS_WINDOWS,)))
    packed = {}
    for (key, piece), block in zip(missing.items(), blocks, strict=True):
        latents = np.asarray(block)[: piece.latents]
        check_finite(latents)
        packed[key] = pack_window(latents, precision)
        known[key] = unpack_window(packed[key])
    objects.write(packed)
    return known, set(missing)


def read_windows(objects: Objects, keys: Sequence[str]) -> dict[str, StoredWindow | None]:
    """Return windows by key; None for one that is missing or damaged."""
    windows: dict[str, StoredWindow | None] = {}
    for key, value in zip(keys, objects.read(keys), strict=True):
        try:
            windows[key] = None if value is None else unpack_window(value)
        except StoreError:
            windows[key] = None
    return windows


class DocumentReader:
    """Reads one document of a store: its text, and its windows onto the devices of a model.

    `starts_config` is the model's config with the windows of the document.
    """

    def __init__(
        self, objects: Objects, entry: Entry, compressor: Compressor, starts_config: ModelConfig
    ):
        self.entry = entry
        self._objects, self._compressor, self._starts_config = objects, compressor, starts_config
        self._slices: dict[int, BlockSlice] = {}  # by the number of their window

    @cached_property
    def index(self) -> Index:
        """The document's index. Raises StoreError if it is missing or damaged."""
        return read_index(self._objects, self.entry)

    def read_text(self) -> str:
        """Return the text. Raises StoreError if it is missing or damaged."""
        return read_text(self._objects, self.entry)

    def find_starts(self) -> LatentStarts:
        """Return the first token and character of every latent."""
        tokens = latent_starts(self.entry.tokens, self._starts_config, self.entry.ratio)
        return LatentStarts(tokens, self.index.characters)

    def load(self, first: int, stop: int) -> list[BlockSlice]:
        """Return the latents of windows `first` to `stop`; a window is read once.

        An adapter that joins windows needs all of them. Raises StoreError for windows that are
        missing or damaged.
        """
        joined = self._compressor.config.adapter.attention
        wanted = range(len(self.index.keys)) if joined else range(first, stop)
        missing = [number for number in wanted if number not in self._slices]
        counts = self.index.counts[missing].tolist()
        blocks = self._compressor.project(self._load_blocks(missing), counts) if missing else []
        slices = (BlockSlice(block, 0, n) for block, n in zip(blocks, counts, strict=True))
        self._slices.update(zip(missing, self._compressor.share_blocks(slices), strict=True))
        return [self._slices[number] for number in range(first, stop)]

    def _load_blocks(self, numbers: Sequence[int]) -> list[Array]:
        """Read windows onto the devices, a block for each."""
        config = self._compressor.config
        size = config.compression.latents_per_window
        blocks: list[Array] = []
        for start in range(0, len(numbers), WINDOWS_AT_ONCE):
            keys = [self.index.keys[n] for n in numbers[start : start + WINDOWS_AT_ONCE]]
            windows = read_windows(self._objects, list(dict.fromkeys(keys)))
            if bad := [key for key, window in windows.items() if window is None]:
                raise StoreError(
                    f"{self.entry.name}: {len(bad)} windows are missing or damaged, the first is "
                    f"{bad[0]}; add the document again"
                )
            with self._compressor.queue.turn():
                for key in keys:
                    latents = windows[key].latents.astype(config.dtype)  # pyright: ignore
                    padding = ((0, size - len(latents)), (0, 0))
                    blocks.append(replicate(np.pad(latents, padding)))
        return blocks


class StoredLatents(Latents):
    """The latents of a document of a store; a window is read from disk when it is first used.

    Pickles and copies are plain `Latents`, which have all vectors and need no store.

    Attributes:
        entry: what is known about the document.
        encoded: windows that were encoded when this process added it.
        reused: windows that the store had then.
    """

    def __init__(self, reader: DocumentReader, width: int):
        self.entry, self.encoded, self.reused = reader.entry, 0, 0
        self.tokens, self._width, self._copies = reader.entry.tokens, width, {}
        self._reader, self._find_starts = reader, reader.find_starts

    def __len__(self) -> int:
        return self.entry.latents

    @property
    def width(self) -> int:
        """Width D of the vectors, equal to the decoder's width."""
        return self._width

    @cached_property
    def text(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The document's text. Raises StoreError if it is missing or damaged."""
        return self._reader.read_text()

    @property
    def _source(self) -> list[BlockSlice]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._slices(0, len(self._ends))

    @property
    def _is_array(self) -> bool:
        return False

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self._reader.index.counts)

    def _slices(self, first: int, stop: int) -> list[BlockSlice]:
        return self._reader.load(first, stop)


def read_text(objects: Objects, entry: Entry) -> str:
    """Return the text of a document. Raises StoreError if it is missing or damaged."""
    return read_hashed(objects, f"texts/{entry.text}", entry).decode()


def read_index(objects: Objects, entry: Entry) -> Index:
    """Return the index of a document. Raises StoreError if it is missing or damaged."""
    return Index.from_bytes(read_hashed(objects, f"indexes/{entry.index}", entry))


def read_hashed(objects: Objects, key: str, entry: Entry) -> bytes:
    """Return an object whose name is its SHA-256."""
    (value,) = objects.read([key])
    if value is None or hashlib.sha256(value).hexdigest() != key.partition("/")[2]:
        state = "missing" if value is None else "not as it was written"
        raise StoreError(f"{entry.name}: {key} is {state}; add the document again")
    return value
