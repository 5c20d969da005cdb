"""A retriever over a store whose index is a LanceDB table, in a directory (extra `retrieval`)."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from lclm_jax.config import ConfigError
from lclm_jax.data.inputs.libraries import require
from lclm_jax.files.directories import check_path, locked
from lclm_jax.inference.retrieval.passages import (
    PASSAGE_CHARACTERS,
    Passage,
    RetrievalError,
    split_passages,
)
from lclm_jax.inference.store import Entry, Store, StoreError
from lclm_jax.progress import Progress, without_progress

EXTRA = "retrieval"  # installs LanceDB
TABLE = "passages"

Embed = Callable[[Sequence[str]], np.ndarray]  # N texts to vectors [N, width]
Key = tuple[str, str]  # a document's name, and the SHA-256 of its text


class LanceRetriever:
    """Finds the passages of a store whose vectors are nearest to a question's, by cosine.

        retriever = LanceRetriever("index", store, embed)
        retriever.update()  # after documents were added to the store or removed from it
        passages = retriever.retrieve("What does it cost?", count=8)

    `embed` turns N texts into an array [N, width]; the vector of each passage is kept in
    `directory`, which is for this function only. Models that embed questions in another way than
    passages have a second function, `embed_question`. A passage has at most `characters`.

    `table` is the LanceDB table. A search compares the question with every vector, unless the table
    has an index of its own (LanceDB's `create_index`, of cosines).

    Raises UserError without LanceDB, RetrievalError if the vectors in the directory have another
    width, and ConfigError for a path that cannot hold an index.
    """

    def __init__(
        self,
        directory: str | Path,
        store: Store,
        embed: Embed,
        embed_question: Embed | None = None,
        characters: int = PASSAGE_CHARACTERS,
    ):
        check_path(directory, "the directory of an index")
        self.directory, self.store = Path(directory).expanduser(), store
        self._embed, self._embed_question = embed, embed_question or embed
        self._characters = characters
        self.table = open_table(self.directory, width=run_embedding(embed, ["text"]).shape[1])

    def update(self, progress: Progress = without_progress) -> tuple[int, int]:
        """Index new and changed documents of the store's model, and drop the others.

        Returns the numbers of documents indexed and dropped. After an interruption the documents
        indexed before are there. Raises DirectoryError while another process updates the index.
        """
        entries: dict[Key, Entry] = {
            (entry.name, entry.text): entry
            for entry in self.store.ls()
            if entry.model_id == self.store.model_id
        }
        with locked(self.directory):
            indexed = self._read_keys()
            new, old = entries.keys() - indexed, indexed - entries.keys()
            for key in progress(sorted(new), "indexing documents"):
                self._add(entries[key])
            for document, text in old:
                self.table.delete(f"document = {quote(document)} AND text = {quote(text)}")
            if new or old:
                self.table.optimize()
        return len(new), len(old)

    def retrieve(self, question: str, count: int) -> list[Passage]:
        """Return up to `count` passages, the best first; scores are cosines.

        Passages of documents that have changed since the last `update` are left out.
        """
        if count < 1:
            raise ConfigError(f"count must be at least 1, got {count}")
        (vector,) = run_embedding(self._embed_question, [question])
        search = self.table.search(vector).distance_type("cosine").limit(count)
        return [
            Passage(row["document"], row["start"], row["stop"], 1 - row["_distance"])
            for row in search.to_list()
            if self._is_current(row["document"], row["text"])
        ]

    def _read_keys(self) -> set[Key]:
        rows = self.table.search().select(["document", "text"]).to_arrow()
        return set(zip(rows["document"].to_pylist(), rows["text"].to_pylist(), strict=True))

    def _add(self, entry: Entry):
        """Index a document, all of it or, after an error, nothing."""
        text = self.store.get(entry.name, entry.ratio).text
        ranges = split_passages(text, self._characters)
        vectors = run_embedding(self._embed, [text[start:stop] for start, stop in ranges])
        self.table.add(
            [
                {
                    "document": entry.name,
                    "text": entry.text,
                    "start": start,
                    "stop": stop,
                    "vector": vector,
                }
                for (start, stop), vector in zip(ranges, vectors, strict=True)
            ]
        )

    def _is_current(self, document: str, text: str) -> bool:
        try:
            return any(entry.text == text for entry in self.store.show(document))
        except StoreError:  # it was removed
            return False


def open_table(directory: Path, width: int) -> Any:
    """Open the table of an index, or make an empty one for vectors of a width."""
    lancedb, arrow = require("lancedb", EXTRA), require("pyarrow", EXTRA)
    schema = arrow.schema(
        {
            "document": arrow.string(),
            "text": arrow.string(),  # SHA-256
            "start": arrow.int64(),
            "stop": arrow.int64(),
            "vector": arrow.list_(arrow.float32(), width),
        }
    )
    # Without the interval, a process would not see what others write.
    database = lancedb.connect(directory, read_consistency_interval=timedelta(0))
    try:
        return database.create_table(TABLE, schema=schema, exist_ok=True)
    except ValueError as error:
        raise RetrievalError(
            f"expected vectors of width {width} in {directory}, as embed gives, got other ones; "
            "name another directory for another embedding"
        ) from error


def run_embedding(embed: Embed, texts: Sequence[str]) -> np.ndarray:
    """Return the vectors [N, width] of N texts.

    Raises RetrievalError if the embedding function returns another shape, NaN or infinity.
    """
    vectors = np.asarray(embed(texts), np.float32)
    if vectors.ndim != 2 or len(vectors) != len(texts):
        shape = f"[{len(texts)}, width]"
        raise RetrievalError(f"expected vectors {shape} from embed, got shape {vectors.shape}")
    if not np.isfinite(vectors).all():
        raise RetrievalError("expected vectors of numbers from embed, got NaN or infinity")
    return vectors


def quote(text: str) -> str:
    """Return a text as a literal of SQL.

    >>> quote("Ada's notes")
    "'Ada''s notes'"
    """
    return "'" + text.replace("'", "''") + "'"
