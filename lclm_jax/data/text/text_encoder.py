"""Text to tokens by a model that has no control tokens."""

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
    """Encodes text by a model without control tokens, and by a choice of added tokens."""

    fast: FastTokenizer
    ids: np.ndarray | None = None  # of entries, by the library's numbers for them; None: the same
    dropped: int | None = None  # the id of an unknown token that is a control token

    @classmethod
    def of(
        cls,
        fields: TokenizerJson,
        reserved: Collection[str],
        matched: Sequence[Mapping[str, Any]],
        dropped: int | None = None,
    ) -> "Encoder":
        """An encoder that has no entry of the `reserved` names but for those that are `matched`,
        added tokens as in a `tokenizer.json`.

        The library numbers added tokens after all entries of the model. So that these numbers are
        no entry's id, the ids before them are taken by tokens that are never found.
        """
        bare = {**fields, "model": without_entries(fields["model"], reserved), "added_tokens": []}
        if not matched:
            return cls(build_library_tokenizer(bare), None, dropped)
        vocab = bare["model"]["vocab"]
        size = count_embedding_rows(fields)
        hidden = [
            {**CONTROL_TOKEN_FLAGS, "id": 0, "content": f"\ufdd0{n}\ufdd1"}
            for n in range(len(vocab), size)
        ]
        found = [{**one, "special": False} for one in matched]
        fast = build_library_tokenizer({**bare, "added_tokens": [*hidden, *found]})
        fast.encode_special_tokens = True  # as text, that is: hidden ones are not looked for
        ids = np.arange(size + len(found), dtype=np.int32)
        for one in found:
            ids[fast.token_to_id(one["content"])] = one["id"]
        return cls(fast, ids, dropped)

    def encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [n] and the characters [n, 2] each stands for: from, up to."""
        with library_errors_as_text_errors("a text that can be encoded", [text]):
            encoded = self.fast.encode(text, add_special_tokens=False)
        numbers = np.array(encoded.ids, np.int32)
        offsets = np.array(encoded.offsets, np.int64).reshape(-1, 2)
        kept = slice(None) if self.dropped is None else numbers != self.dropped
        return self._tokens(numbers), offsets[kept]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Tokens of many texts, on all cores."""
        with library_errors_as_text_errors("a text that can be encoded", texts):
            encoded = self.fast.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._tokens(np.array(one.ids, np.int32)) for one in encoded]

    def _tokens(self, numbers: np.ndarray) -> np.ndarray:
        """The ids of entries from the library's numbers for them."""
        if self.dropped is not None:
            numbers = numbers[numbers != self.dropped]
        return numbers if self.ids is None else self.ids[numbers]


def without_entries(model: TokenizerJson, names: Collection[str]) -> TokenizerJson:
    """The model without entries of these names, and with all other entries as they were.

    The unknown token, which a model cannot do without, loses its spelling only: the empty string,
    which no text has as a piece.
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
