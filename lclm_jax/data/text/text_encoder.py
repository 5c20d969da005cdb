"""Encoding of text with a model from which the control tokens are removed."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer as FastTokenizer

from lclm_jax.data.text.tokenizer_json import (
    CONTROL_TOKEN_FLAGS,
    TokenizerJson,
    build_library_tokenizer,
    count_embedding_rows,
    library_errors_as_text_errors,
)


@dataclass(frozen=True)
class Encoder:
    """Encoder of text with a model without control tokens and with chosen added tokens.

    `ids` maps the library's numbers of entries to their ids; None where they are equal. `dropped`
    is the id of an unknown token that is a control token: it is removed from the result.
    """

    fast: FastTokenizer
    ids: np.ndarray | None = None
    dropped: int | None = None

    @classmethod
    def of(
        cls,
        fields: TokenizerJson,
        reserved: Collection[str],
        matched: Sequence[Mapping[str, Any]],
        dropped: int | None = None,
    ) -> "Encoder":
        """Return an encoder without the entries named `reserved`, with `matched` as added tokens.

        `matched` are added tokens as in a `tokenizer.json`, with the ids that they are to have.

        The library numbers added tokens from the size of the model's vocabulary on. Filler tokens,
        which occur in no text, take the numbers that are the ids of other entries.
        """
        bare = {**fields, "model": without_entries(fields["model"], reserved), "added_tokens": []}
        if not matched:
            return cls(build_library_tokenizer(bare), None, dropped)
        vocab = bare["model"]["vocab"]
        size = count_embedding_rows(fields)

        filler = [
            {**CONTROL_TOKEN_FLAGS, "id": 0, "content": f"\ufdd0{n}\ufdd1"}
            for n in range(len(vocab), size)
        ]
        added = [{**token, "special": False} for token in matched]
        fast = build_library_tokenizer({**bare, "added_tokens": [*filler, *added]})
        # The library then reads special tokens as text, so it does not search for the filler.
        fast.encode_special_tokens = True

        ids = np.arange(size + len(added), dtype=np.int32)
        for token in added:
            ids[fast.token_to_id(token["content"])] = token["id"]
        return cls(fast, ids, dropped)

    def encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens [n] and the characters [n, 2] (start, stop) of each.

        Raises TextError for a text that cannot be encoded.
        """
        with library_errors_as_text_errors("a text that can be encoded", [text]):
            encoded = self.fast.encode(text, add_special_tokens=False)
        numbers = np.array(encoded.ids, np.int32)
        offsets = np.array(encoded.offsets, np.int64).reshape(-1, 2)
        kept = slice(None) if self.dropped is None else numbers != self.dropped
        return self._tokens(numbers), offsets[kept]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the tokens of each text, encoded on all cores; raises TextError as `encode`."""
        with library_errors_as_text_errors("a text that can be encoded", texts):
            encoded = self.fast.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._tokens(np.array(result.ids, np.int32)) for result in encoded]

    def _tokens(self, numbers: np.ndarray) -> np.ndarray:
        """Return the ids of entries given by their numbers in the library."""
        if self.dropped is not None:
            numbers = numbers[numbers != self.dropped]
        return numbers if self.ids is None else self.ids[numbers]


def without_entries(model: TokenizerJson, names: Collection[str]) -> TokenizerJson:
    """Return the model without the entries of these names; other entries keep their numbers.

    A model needs its unknown token, so that one is renamed to the empty string, which never
    occurs as a piece of text.
    """
    vocab, unknown = model["vocab"], model.get("unk_token")
    if isinstance(vocab, list):
        return {**model, "vocab": [["" if p in names else p, score] for p, score in vocab]}
    if not any(name in vocab for name in names):
        return model
    numbers = {vocab[name] for name in names if name in vocab}
    kept = {name: number for name, number in vocab.items() if number not in numbers}
    changed = {**model, "vocab": kept}
    if unknown in names and unknown in vocab:
        kept[""] = vocab[unknown]
        changed["unk_token"] = ""
    if "merges" in model:
        prefix = len(model.get("continuing_subword_prefix") or "")
        pairs = ((merge, _pair(merge)) for merge in model["merges"])
        changed["merges"] = [
            merge
            for merge, (left, right) in pairs
            if left in kept and right in kept and left + right[prefix:] in kept
        ]
    return changed


def _pair(merge: str | Sequence[str]) -> Sequence[str]:
    return merge.split(" ", 1) if isinstance(merge, str) else merge
