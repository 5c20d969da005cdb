"""Writing and reading of one document of a store: its windows, its text and its index."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np

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

# Windows per encoder pass. It is one number, so that a window's latents do not depend, by rounding,
# on the windows encoded beside it; with four, appending is quick and long texts keep a chip busy.
PASS_WINDOWS = 4
WINDOWS_AT_ONCE = 64  # looked up, encoded and written together; bounds host memory


class StoredLatents(Latents):
    """The latents of a document of a store, read from disk when they are first used.

    Attributes:
        entry: what is known about the document.
        encoded: windows that were encoded when it was added.
        reused: windows that the store had.
    """

    def __init__(
        self,
        entry: Entry,
        width: int,
        load: Callable[[], list[BlockSlice]],
        read_text: Callable[[], str],
        find_starts: Callable[[], LatentStarts],
        encoded: int = 0,
        reused: int = 0,
    ):
        self.entry, self.encoded, self.reused = entry, encoded, reused
        self.tokens, self._width, self._copies = entry.tokens, width, {}
        self._load, self._read_text, self._find_starts = load, read_text, find_starts

    def __len__(self) -> int:
        return self.entry.latents

    @property
    def width(self) -> int:
        """Width D of the vectors, equal to the decoder's width."""
        return self._width

    @cached_property
    def text(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The document's text. Raises StoreError if it is missing or damaged."""
        return self._read_text()

    @cached_property
    def _source(self) -> list[BlockSlice]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._load()


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
    """Writes the windows of one document; those that the store has are not encoded again."""

    def __init__(
        self,
        objects: Objects,
        compressor: Compressor,
        model_id: str,
        ratio: int,
        precision: Precision,
    ):
        self.objects, self.compressor, self.model_id = objects, compressor, model_id
        self.ratio = ratio
        self.precision: Precision = precision
        self.encoded = self.reused = 0
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
        windows = read_windows(self.objects, list(dict.fromkeys(keys)))
        # A window that occurs several times is encoded once, and one that is damaged again.
        missing = {k: p for k, p in zip(keys, pieces, strict=True) if windows[k] is None}
        blocks = list(self.compressor.encode(missing.values(), (PASS_WINDOWS,)))
        packed = {}
        for (key, piece), block in zip(missing.items(), blocks, strict=True):
            latents = np.asarray(block)[: piece.latents]
            check_finite(latents)
            packed[key] = pack_window(latents, self.precision)
            windows[key] = unpack_window(packed[key])
        self.objects.write(packed)

        self.encoded += len(missing)
        self.reused += len(pieces) - len(missing)
        self._keys += keys
        self._counts += [piece.latents for piece in pieces]
        for key in keys:
            window = windows[key]
            assert window is not None
            self._squared_error += window.squared_error
            self._squares += window.squares


def read_windows(objects: Objects, keys: Sequence[str]) -> dict[str, StoredWindow | None]:
    """Return windows by key; None for one that is missing or damaged."""
    windows: dict[str, StoredWindow | None] = {}
    for key, value in zip(keys, objects.read(keys), strict=True):
        try:
            windows[key] = None if value is None else unpack_window(value)
        except StoreError:
            windows[key] = None
    return windows


def load_blocks(objects: Objects, entry: Entry, compressor: Compressor) -> list[BlockSlice]:
    """Read the latents of a document onto the devices, a block for each window.

    Raises StoreError for windows that are missing or damaged.
    """
    index, config = read_index(objects, entry), compressor.config
    size = config.compression.latents_per_window
    blocks = []
    for start in range(0, len(index.keys), WINDOWS_AT_ONCE):
        keys = index.keys[start : start + WINDOWS_AT_ONCE]
        windows = read_windows(objects, keys)
        if bad := [key for key, window in windows.items() if window is None]:
            raise StoreError(
                f"{entry.name}: {len(bad)} windows are missing or damaged, the first is {bad[0]}; "
                "add the document again"
            )
        with compressor.queue.turn():
            for key in keys:
                latents = windows[key].latents.astype(config.dtype)  # pyright: ignore
                padding = ((0, size - len(latents)), (0, 0))
                blocks.append(replicate(np.pad(latents, padding)))
    counts = index.counts.tolist()
    blocks = compressor.project(blocks, counts)
    return [BlockSlice(block, 0, count) for block, count in zip(blocks, counts, strict=True)]


def read_text(objects: Objects, entry: Entry) -> str:
    """Return the text of a document. Raises StoreError if it is missing or damaged."""
    return read_hashed(objects, f"texts/{entry.text}", entry).decode()


def read_index(objects: Objects, entry: Entry) -> Index:
    """Return the index of a document. Raises StoreError if it is missing or damaged."""
    return Index.from_bytes(read_hashed(objects, f"indexes/{entry.index}", entry))


def read_starts(objects: Objects, entry: Entry, compressor: Compressor) -> LatentStarts:
    """Return the first token and character of every latent of a document."""
    tokens = latent_starts(entry.tokens, compressor.config, entry.ratio)
    return LatentStarts(tokens, read_index(objects, entry).characters)


def read_hashed(objects: Objects, key: str, entry: Entry) -> bytes:
    """Return an object whose name is its SHA-256."""
    (value,) = objects.read([key])
    if value is None or hashlib.sha256(value).hexdigest() != key.partition("/")[2]:
        state = "missing" if value is None else "not as it was written"
        raise StoreError(f"{entry.name}: {key} is {state}; add the document again")
    return value
