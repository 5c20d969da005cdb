"""Entries of a store: what is known about a document without reading its latents."""

import hashlib
import json
from dataclasses import asdict, dataclass

from lclm_jax.inference.store.objects import StoreError
from lclm_jax.inference.store.windows import Precision


@dataclass(frozen=True)
class Entry:
    """A document of a store, compressed by one model at one ratio.

    Attributes:
        name: the document's.
        ratio: in tokens per latent.
        model_id: identity of the encoder and adapter (`identity.find_model_id`).
        model_name: the directory from which the model was loaded.
        precision: of the stored latents.
        window: tokens per window.
        tokens, latents, characters: their numbers.
        text: SHA-256 of the text, which is the object `texts/<text>`.
        index: SHA-256 of the object `indexes/<index>`: the keys of the windows, and the first
            character of every latent.
        error: root mean square of what rounding changed, as a share of that of the latents.
        added: time, in ISO format.
    """

    name: str
    ratio: int
    model_id: str
    model_name: str
    precision: Precision
    window: int
    tokens: int
    latents: int
    characters: int
    text: str
    index: str
    error: float
    added: str

    @property
    def key(self) -> str:
        """Key of the entry's object."""
        return f"{documents_prefix(self.name)}{self.model_id}-{self.ratio}.json"

    def to_bytes(self) -> bytes:
        """Return the entry as JSON with its checksum."""
        fields = asdict(self)
        return json.dumps({"entry": fields, "sha256": _digest(fields)}, indent=1).encode()

    @classmethod
    def from_bytes(cls, value: bytes) -> "Entry":
        """Return the entry of `to_bytes`. Raises StoreError for damaged bytes."""
        try:
            written = json.loads(value)
            fields = written["entry"]
            if written["sha256"] != _digest(fields):
                raise StoreError("the checksum does not fit; the entry is not as it was written")
            return cls(**fields)
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(
                f"expected the entry of a document, got other bytes: {error}"
            ) from error


def documents_prefix(name: str) -> str:
    """Return the prefix of the keys of all entries of a document."""
    return f"documents/{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}/"


def _digest(fields: dict) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
