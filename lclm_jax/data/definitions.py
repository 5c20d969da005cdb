"""Definitions of tokenizers: the fields of a `tokenizer.json`, and which of its entries may come
from text.

Added tokens are of two kinds. *Control tokens* are special or spelled as markup (`<...>`, `[...]`):
only chat templates and tags may bring them in. All others are *words*: part of how text is encoded.
The model's unknown token is no control token as long as that is all it is: a text with characters
that the vocabulary lacks has it. Where it also ends texts or turns, it is one.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer as FastTokenizer

from lclm_jax.errors import TextError

Fields = dict[str, Any]  # of a tokenizer.json

MAX_FREE_IDS = 65_536  # numbers without an entry that are filled up
FORM = {  # of a control token
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}
BARE = dict.fromkeys(("post_processor", "truncation", "padding"))  # encode nothing but the text


def parse(definition: str) -> Fields:
    """The fields of a `tokenizer.json`. Raises TextError where it is none."""
    try:
        fields = json.loads(definition)
    except json.JSONDecodeError as error:
        raise TextError(f"expected a tokenizer.json, got no JSON: {error}") from error
    model = fields.get("model") if isinstance(fields, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), (dict, list)):
        raise TextError("expected a tokenizer.json with a model that has a vocab, got another file")
    return {**fields, "added_tokens": fields.get("added_tokens") or []}


def build(fields: Fields) -> FastTokenizer:
    """The library's tokenizer, without truncation, padding and a template of its own.

    Raises TextError where the library refuses it.
    """
    try:
        return FastTokenizer.from_str(json.dumps({**fields, **BARE}))
    except Exception as error:  # the library raises nothing more special
        raise TextError(f"the tokenizers library cannot read this tokenizer: {error}") from error


def is_markup(name: str) -> bool:
    """Whether a token is spelled as markup, in angle or square brackets."""
    return len(name) > 2 and (name[0], name[-1]) in (("<", ">"), ("[", "]"))


def is_control(token: Mapping[str, Any]) -> bool:
    """Whether an added token is a control token, or the unknown token."""
    return token["special"] or is_markup(token["content"].strip())


def vocabulary(fields: Fields) -> dict[str, int]:
    """The model's entries and their ids."""
    vocab = fields["model"]["vocab"]
    if isinstance(vocab, dict):
        return vocab
    return {piece: number for number, (piece, _) in enumerate(vocab)}


def last_id(fields: Fields) -> int:
    """The highest id of an entry."""
    added = (one["id"] for one in fields["added_tokens"])
    return max(max(vocabulary(fields).values(), default=-1), *added, -1, -1)


def unknown_token(fields: Fields) -> str | None:
    """The entry that the model gives for characters its vocabulary lacks."""
    model = fields["model"]
    number = model.get("unk_id")
    return model["vocab"][number][0] if number is not None else model.get("unk_token")


# --- ids ---


def misnumbered(fields: Fields, fast: FastTokenizer) -> list[str]:
    """The added tokens that the library gives other ids than the file does."""
    added = fields["added_tokens"]
    return [one["content"] for one in added if fast.token_to_id(one["content"]) != one["id"]]


def renumber(fields: Fields) -> Fields:
    """The definition as the library reads it with the ids of the file.

    The library numbers added tokens one after the other. So ids without an entry get one, as
    transformers does for vocabularies of tiktoken; ids that lie below the size of a vocabulary are
    written into that. Raises TextError where the ids cannot be kept.
    """
    vocab = vocabulary(fields)
    added = fields["added_tokens"]
    taken = {*vocab.values(), *(one["id"] for one in added)}
    if (free := max(taken) + 1 - len(taken)) > MAX_FREE_IDS:
        raise TextError(
            f"the ids of the tokenizer leave {free} numbers free, expected at most {MAX_FREE_IDS}; "
            "number its added tokens from the end of its vocabulary"
        )
    fill = [
        {"id": number, "content": f"<|reserved_token_{number}|>", **FORM}
        for number in range(max(taken))
        if number not in taken
    ]
    filled = {**fields, "added_tokens": sorted([*added, *fill], key=lambda one: one["id"])}
    wrong = misnumbered(filled, build(filled))
    if wrong and isinstance(fields["model"]["vocab"], dict):
        ids = {one["content"]: one["id"] for one in filled["added_tokens"]}
        filled["model"] = {**fields["model"], "vocab": ids | vocab}
        wrong = misnumbered(filled, build(filled))
    if wrong:
        raise TextError(
            f"the tokenizer gives {wrong[0]!r} an id that another entry has or that the tokenizers "
            "library does not give it; number its added tokens from the end of its vocabulary"
        )
    return filled


# --- encoding without control tokens ---


def without_entries(model: Fields, names: Collection[str]) -> Fields:
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


@dataclass(frozen=True)
class Encoder:
    """Encodes text by a model without control tokens, and by a choice of added tokens."""

    fast: FastTokenizer
    ids: np.ndarray | None = None  # of entries, by the library's numbers for them; None: the same
    dropped: int | None = None  # the id of an unknown token that is a control token

    @classmethod
    def of(
        cls,
        fields: Fields,
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
            return cls(build(bare), None, dropped)
        vocab = bare["model"]["vocab"]
        size = last_id(fields) + 1
        hidden = [{**FORM, "id": 0, "content": f"\ufdd0{n}\ufdd1"} for n in range(len(vocab), size)]
        found = [{**one, "special": False} for one in matched]
        fast = build({**bare, "added_tokens": [*hidden, *found]})
        fast.encode_special_tokens = True  # as text, that is: hidden ones are not looked for
        ids = np.arange(size + len(found), dtype=np.int32)
        for one in found:
            ids[fast.token_to_id(one["content"])] = one["id"]
        return cls(fast, ids, dropped)

    def encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [n] and the characters [n, 2] each stands for: from, up to."""
        encoded = self.fast.encode(text, add_special_tokens=False)
        numbers = np.array(encoded.ids, np.int32)
        offsets = np.array(encoded.offsets, np.int64).reshape(-1, 2)
        kept = slice(None) if self.dropped is None else numbers != self.dropped
        return self._tokens(numbers), offsets[kept]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Tokens of many texts, on all cores."""
        encoded = self.fast.encode_batch_fast(list(texts), add_special_tokens=False)  # no offsets
        return [self._tokens(np.array(one.ids, np.int32)) for one in encoded]

    def _tokens(self, numbers: np.ndarray) -> np.ndarray:
        """The ids of entries from the library's numbers for them."""
        if self.dropped is not None:
            numbers = numbers[numbers != self.dropped]
        return numbers if self.ids is None else self.ids[numbers]
