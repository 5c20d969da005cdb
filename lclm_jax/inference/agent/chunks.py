"""Documents as numbered chunks, each with its latents and its text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lclm_jax.errors import TextError
from lclm_jax.inference.latents import Latents
from lclm_jax.inference.store import Store

Source = Store | Latents | Sequence[Latents] | Mapping[str, Latents]  # of documents


@dataclass(frozen=True, eq=False)
class Chunk:
    """A part of a document.

    Attributes:
        number: from 1, through all documents.
        document: its name.
        start, stop: characters of the document.
        latents: of the part, with its text.
    """

    number: int
    document: str
    start: int
    stop: int
    latents: Latents

    @property
    def text(self) -> str:
        """The words that the latents stand for."""
        return self.latents.text or ""


def number_chunks(source: Source, tokens: int, ratio: int | None = None) -> list[Chunk]:
    """Cut documents into chunks of about `tokens` tokens.

    Raises TextError if there is no document, and LatentsError for latents without a text.
    """
    chunks: list[Chunk] = []
    if isinstance(source, str):
        raise TextError("expected a store or latents for the agent, got text; compress it first")
    for name, latents in name_documents(source, ratio).items():
        if not isinstance(latents, Latents):
            kind = type(latents).__name__
            raise TextError(f"expected latents for the agent, got {kind}; compress it first")
        start = 0
        for part in latents.chunks(tokens):
            stop = start + len(part.text or "")
            chunks.append(Chunk(len(chunks) + 1, name, start, stop, part))
            start = stop
    if not chunks:
        raise TextError("expected documents for the agent, got none")
    return chunks


def name_documents(source: Source, ratio: int | None) -> Mapping[str, Latents]:
    """Return documents by name; those without one are called "document 1" and so on."""
    if isinstance(source, Store):
        return source.read(ratio=ratio)
    if isinstance(source, Mapping):
        return source
    documents = [source] if isinstance(source, Latents) else source
    return {f"document {number}": latents for number, latents in enumerate(documents, start=1)}
