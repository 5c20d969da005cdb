"""Documents compressed once and kept in a directory, for any number of prompts and processes."""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from weakref import WeakValueDictionary

from lclm_jax.config import ConfigError
from lclm_jax.data.inputs.files import Rejection
from lclm_jax.data.records import ContextPiece
from lclm_jax.data.records.windows import resolve_ratio
from lclm_jax.data.text.tokenizer import TextError, count_parts
from lclm_jax.errors import UserError
from lclm_jax.files.directories import DirectoryError, check_path
from lclm_jax.inference.compressor import Compressor
from lclm_jax.inference.documents import (
    Document,
    group_documents,
    read_document,
    read_documents,
)
from lclm_jax.inference.language_model import LanguageModel, load
from lclm_jax.inference.store.documents import (
    WINDOWS_AT_ONCE,
    DocumentReader,
    StoredLatents,
    WindowWriter,
    encode_missing,
)
from lclm_jax.inference.store.entries import Entry, documents_prefix
from lclm_jax.inference.store.identity import find_model_id
from lclm_jax.inference.store.locks import changing, cleaning, writing
from lclm_jax.inference.store.maintenance import Cleaned, clean_up, find_damage
from lclm_jax.inference.store.objects import Objects, StoreError
from lclm_jax.inference.store.windows import FLOATS, Precision, window_key
from lclm_jax.progress import Progress, without_progress
from lclm_jax.typing import Params

log = logging.getLogger(__name__)
FORMAT = "store.json"
FORMAT_VERSION = 1


class Store:
    """Documents compressed once and kept in a directory.

        store = lclm_jax.Store("memories", model)
        report = store.add("report.pdf", ratio=16)   # encodes the windows that are new
        model.generate([report, "What does it conclude?"])
        model.generate([store["report.pdf"], "Who wrote it?"])   # encodes nothing

    Windows are kept by their content, model and precision, whatever documents they stand in, so
    nothing is encoded twice. Any number of processes may read and write. Without a `model`,
    documents can be listed, verified and removed, not added or read.

    `precision` is that of the latents: by default the model's own; "int8" takes a quarter of
    float32 and half of bfloat16, `Entry.error` says what it changes.

    Raises StoreError for a directory that holds something else, and ConfigError for a path that
    cannot hold a store.
    """

    def __init__(
        self,
        directory: str | Path,
        model: LanguageModel | None = None,
        precision: Precision | None = None,
    ):
        check_path(directory, "the directory of a store")
        self.directory, self._model = Path(directory).expanduser().absolute(), model
        if precision not in (None, "int8", *FLOATS):
            raise ConfigError(f"precision must be float32, bfloat16 or int8, got {precision!r}")
        self._precision: Precision | None = precision
        self._open(create=model is not None)
        self._objects = Objects(self.directory)
        self._loaded: WeakValueDictionary[str, StoredLatents] = WeakValueDictionary()
        self._identified: tuple[Params, str] | None = None  # parameters and their identity

    def _open(self, create: bool):
        """Check that the directory is a store; make it one if it is empty or missing."""
        file = self.directory / FORMAT
        try:
            if not file.exists():
                entries = list(self.directory.iterdir()) if self.directory.exists() else []
                # Another process may be making the store at this moment.
                if any(not path.name.startswith(FORMAT) for path in entries):
                    raise StoreError(f"{self.directory} holds no store; name another directory")
                if not create:
                    raise StoreError(f"{self.directory} holds no store; launch.compress makes one")
                self.directory.mkdir(parents=True, exist_ok=True)
                Objects(self.directory).write(
                    {FORMAT: json.dumps({"version": FORMAT_VERSION}).encode()}
                )
            version = json.loads(file.read_bytes())["version"]
        except OSError as error:
            raise DirectoryError(f"cannot open {self.directory}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            raise StoreError(
                f"{file} is damaged; expected {json.dumps({'version': FORMAT_VERSION})}"
            ) from error
        if version != FORMAT_VERSION:
            raise StoreError(
                f"expected a store of version {FORMAT_VERSION}, got {version} in {file}"
            )

    @property
    def model(self) -> LanguageModel:
        """The model that compresses and reads. Raises StoreError if the store has none."""
        if self._model is None:
            raise StoreError("expected a store with a model; open it with Store(directory, model)")
        return self._model

    @property
    def model_id(self) -> str:
        """Identity of the model's encoder and adapter; see `identity.find_model_id`."""
        weights = self.model.weights
        if self._identified is None or self._identified[0] is not weights:
            marker = self.model.tokenizer.memory.marker
            with self.model.queue.turn():
                self._identified = weights, find_model_id(weights, self.model.config, marker)
        return self._identified[1]

    @property
    def precision(self) -> Precision:
        """Precision of the latents that are added."""
        return self._precision or self.model.config.dtype

    # --- adding ---

    def add(
        self,
        source: str | Path,
        ratio: int | None = None,
        window: int | None = None,
        progress: Progress = without_progress,
    ) -> StoredLatents:
        """Compress a file of any kind that `read_documents` reads, and return its latents.

        `ratio` is in tokens per latent, by default the model's; `window` in tokens, by default the
        model's and at most that. A document of that name, model and ratio is replaced; its windows
        that have not changed are not encoded again.

        Raises TextError for a file that cannot be read, StoreError if the store cannot be written;
        ConfigError for a ratio or a window that the model does not have.
        """
        document = read_document(source)
        return self.add_text(document.name, document.text, ratio, window, progress)

    def add_all(
        self,
        sources: Iterable[str | Path],
        ratio: int | Mapping[str, int] | None = None,
        window: int | None = None,
        progress: Progress = without_progress,
    ) -> Iterator[StoredLatents | Rejection]:
        """Compress files, directories and patterns; see `add`.

        `ratio` may depend on a document's name: in `{"*": 16, "*.py": 4}` the last pattern that
        fits the name counts. Yields the latents of each document, or why a file was not read.
        """
        ratios = ratio if isinstance(ratio, Mapping) else {"*": ratio}
        for value in ratios.values():
            resolve_ratio(value, self.model.config)
        shortest = self._compressor(window).config.compression.window
        longest = WINDOWS_AT_ONCE * shortest  # few tokens are shorter than a character
        for group in group_documents(read_documents(sources), shortest, longest):
            new = self._encode_together(group, ratios, window)
            for document in group:
                if isinstance(document, Rejection):
                    yield document
                    continue
                name, value = document.name, find_ratio(document.name, ratios)
                with changing(self.directory, documents_prefix(name)):
                    latents = self._add_text(
                        name, document.text, value, window, self.precision, progress, new
                    )
                yield latents

    def _encode_together(
        self,
        group: Sequence[Document | Rejection],
        ratios: Mapping[str, int | None],
        window: int | None,
    ) -> set[str]:
        """Encode and write the windows of several documents, so that they fill passes together.

        Returns the keys of windows that were encoded. An error is left to the document that has it.
        """
        documents = [document for document in group if isinstance(document, Document)]
        if len(documents) < 2:
            return set()
        compressor = self._compressor(window)
        pieces: dict[str, ContextPiece] = {}
        with suppress(UserError), writing(self.directory):
            for document in documents:
                tokens = self.model.tokenizer.encode_stream(document.text)
                for piece in compressor.cut(tokens, find_ratio(document.name, ratios)):
                    pieces[window_key(piece, self.model_id, self.precision)] = piece
            return encode_missing(self._objects, compressor, self.precision, pieces)[1]
        return set()

    def add_text(
        self,
        name: str,
        text: str,
        ratio: int | None = None,
        window: int | None = None,
        progress: Progress = without_progress,
    ) -> StoredLatents:
        """Compress a text under a name; see `add`."""
        if not isinstance(name, str) or not isinstance(text, str):
            raise TextError(
                f"expected a name and a text, got {type(name).__name__} and {type(text).__name__}"
            )
        with changing(self.directory, documents_prefix(name)):
            return self._add_text(name, text, ratio, window, self.precision, progress)

    def _add_text(
        self,
        name: str,
        text: str,
        ratio: int | None,
        window: int | None,
        precision: Precision,
        progress: Progress = without_progress,
        new: set[str] | None = None,
    ) -> StoredLatents:
        """Compress a text; `new` is that of `WindowWriter`."""
        if not text:
            raise TextError(f"expected text to compress as {name}, got an empty string")
        try:
            content = text.encode()
            name.encode()
        except UnicodeEncodeError as error:
            raise TextError(
                f"{name!a}: expected a name and a text that UTF-8 can write, got {error}"
            ) from error
        compressor = self._compressor(window)
        ratio = resolve_ratio(ratio, compressor.config)
        parts = self.model.tokenizer.encode_stream_with_offsets(text)
        tracked = progress(parts, f"compressing {name}", count_parts(text))
        writer = WindowWriter(self._objects, compressor, self.model_id, ratio, precision, new)
        with writing(self.directory):
            index = writer.write(tracked)
            index_content = index.to_bytes()
            entry = Entry(
                name=name,
                ratio=ratio,
                model_id=self.model_id,
                model_name=self.model.name,
                precision=precision,
                window=compressor.config.compression.window,
                tokens=writer.tokens,
                latents=len(index.characters),
                characters=len(text),
                text=hashlib.sha256(content).hexdigest(),
                index=hashlib.sha256(index_content).hexdigest(),
                error=writer.error,
                added=datetime.now().astimezone().isoformat(timespec="seconds"),
            )
            # The entry comes last, so that a document is there with all its objects or not at all.
            self._objects.write(
                {f"texts/{entry.text}": content, f"indexes/{entry.index}": index_content}
            )
            self._objects.write({entry.key: entry.to_bytes()})
        latents = self._latents_of(entry)
        latents.encoded, latents.reused = writer.encoded, writer.reused
        return latents

    def append(self, name: str, text: str, ratio: int | None = None) -> StoredLatents:
        """Add text to the end of a document; only windows that change are encoded.

        The result is that of compressing the whole text, bit for bit on one kind of device. The
        whole text is tokenized again, since its last tokens may change with what follows and the
        store has no tokens: it could not encode a damaged window again.
        """
        with changing(self.directory, documents_prefix(name)):
            known = self.get(name, ratio)
            entry = known.entry
            whole = known.text + text
            return self._add_text(name, whole, entry.ratio, entry.window, entry.precision)

    def _compressor(self, window: int | None) -> Compressor:
        """Return the model's compressor, with shorter windows where they are asked for."""
        compressor = self.model.compressor
        if window is None:
            return compressor
        compression = compressor.config.compression
        if not 0 < window <= compression.window:
            raise ConfigError(f"window must be from 1 to {compression.window} tokens, got {window}")
        shorter = replace(compression, window=window)
        return replace(compressor, config=replace(compressor.config, compression=shorter))

    # --- reading ---

    def get(self, name: str, ratio: int | None = None) -> StoredLatents:
        """Return the latents of a document; they are read from disk when they are first used.

        `ratio` may be left out if the document has one. Raises StoreError for an unknown document,
        and for one that only another model has compressed.
        """
        entries = self._entries_of(name)
        own = [entry for entry in entries if entry.model_id == self.model_id]
        matches = [entry for entry in own if ratio in (None, entry.ratio)]
        if entries and not own:
            others = ", ".join(f"{e.model_name or 'a model'} ({e.model_id})" for e in entries)
            mine = self.model.name or "this model"
            raise StoreError(
                f"{name} was compressed by {others}, whose latents {mine} ({self.model_id}) cannot "
                "read, as its encoder differs; add it again"
            )
        if len(matches) != 1:
            ratios = ", ".join(str(entry.ratio) for entry in own) or "none"
            raise StoreError(
                f"expected one document {name}{'' if ratio is None else f' at ratio {ratio}'} in "
                f"{self.directory}, got ratios: {ratios}; add it, or name the ratio"
            )
        (entry,) = matches
        return self._latents_of(entry)

    def _latents_of(self, entry: Entry) -> StoredLatents:
        """Return the latents of an entry: the same ones as long as somebody uses them.

        Prompts with the same latents share their caches.
        """
        known = self._loaded.get(entry.index)
        if known is not None and replace(known.entry, added=entry.added) == entry:
            return known
        config = self._compressor(entry.window).config
        reader = DocumentReader(self._objects, entry, self.model.compressor, config)
        latents = StoredLatents(reader, self.model.config.decoder.width)
        self._loaded[entry.index] = latents
        return latents

    def read(
        self, names: Sequence[str] | None = None, ratio: int | None = None
    ) -> dict[str, StoredLatents]:
        """Return the latents of several documents by name, by default of all; see `get`."""
        if names is None:
            names = sorted({entry.name for entry in self.ls()})
        if not names:
            raise StoreError(f"{self.directory} has no documents; add some")
        return {name: self.get(name, ratio) for name in names}

    def __getitem__(self, name: str) -> StoredLatents:
        """Return the latents of a document; see `get`."""
        return self.get(name)

    def ls(self) -> list[Entry]:
        """Return the entries of all documents, of all models, by name.

        An entry that is damaged is left out, and a warning names it.
        """
        entries = []
        for key in self._objects.list("documents/"):
            try:
                entries += self._read_entry(key)
            except StoreError as error:
                log.warning("left out: %s", error)
        return sorted(entries, key=lambda entry: (entry.name, entry.model_id, entry.ratio))

    def show(self, name: str) -> list[Entry]:
        """Return the entries of one document. Raises StoreError if there is none."""
        entries = self._entries_of(name)
        if not entries:
            raise StoreError(f"there is no document {name} in {self.directory}")
        return entries

    def _entries_of(self, name: str) -> list[Entry]:
        keys = self._objects.list(documents_prefix(name))
        return [entry for key in keys for entry in self._read_entry(key)]

    def _read_entry(self, key: str) -> list[Entry]:
        """Return the entry of a key, or nothing if it was just removed."""
        (value,) = self._objects.read([key])
        try:
            return [] if value is None else [Entry.from_bytes(value)]
        except StoreError as error:
            raise StoreError(
                f"{self.directory}/{key}: {error}; add the document again, or remove this file"
            ) from error

    # --- keeping in order ---

    def remove(self, name: str, ratio: int | None = None) -> int:
        """Remove a document, of all models, and return the number of entries removed.

        `gc` then frees the windows that no other document has.
        """
        keys = [entry.key for entry in self.show(name) if ratio in (None, entry.ratio)]
        if not keys:
            raise StoreError(f"{name} is not in {self.directory} at ratio {ratio}")
        with writing(self.directory):
            self._objects.remove(keys)
        return len(keys)

    def verify(self, progress: Progress = without_progress) -> list[str]:
        """Compare every object of every document with its checksum; return what is wrong."""
        return find_damage(self._objects, progress)

    def gc(self, progress: Progress = without_progress) -> Cleaned:
        """Remove windows, texts and indexes that no document needs.

        Raises StoreError while another process adds documents, or if an entry is damaged.
        """
        with cleaning(self.directory):
            keys = self._objects.list("documents/")
            entries = [entry for key in keys for entry in self._read_entry(key)]
            return clean_up(self._objects, entries, progress)


def find_ratio(name: str, ratios: Mapping[str, int | None]) -> int | None:
    """Return the ratio of the last pattern that fits the name of a document; None if none does.

    >>> find_ratio("src/main.py", {"*": 16, "*.py": 4})
    4
    """
    fitting = [ratio for pattern, ratio in ratios.items() if fnmatchcase(name, pattern)]
    return fitting[-1] if fitting else None


def open_store(directory: str | Path, checkpoint: str | Path | None = None) -> Store:
    """Open a store with a model, by default the one that compressed its documents.

    Raises StoreError without a `checkpoint` if there are several models, or none that was loaded
    from a directory; and the errors of `load`.
    """
    names = sorted({entry.model_name for entry in Store(directory).ls()})
    if checkpoint is None and (len(names) != 1 or not names[0]):
        listed = ", ".join(name or "a model without a directory" for name in names) or "none"
        raise StoreError(
            f"expected documents of one model in {directory}, got {listed}; name a checkpoint"
        )
    return Store(directory, load(checkpoint or names[0]))
