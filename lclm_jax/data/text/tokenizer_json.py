"""Definitions of tokenizers: the fields of a `tokenizer.json`, and which of its entries may come
from text.

Added tokens are of two kinds. *Control tokens* are special or spelled as markup (`<...>`, `[...]`):
only chat templates and tags may bring them in. All others are *words*: part of how text is encoded,
as are single characters and spaces that somebody called special.

The model's unknown token is no control token as long as that is all it is: a text with characters
that the vocabulary lacks has it. Where it also ends texts or turns, it is one.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from lclm_jax.errors import TextError

TokenizerJson = dict[str, Any]  # of a tokenizer.json

MAX_FREE_IDS = 65_536  # numbers without an entry that are filled up
CONTROL_TOKEN_FLAGS = {  # of a control token
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}
SURROGATE = re.compile("[\ud800-\udfff]")


def parse(definition: str) -> TokenizerJson:
    """The fields of a `tokenizer.json`. Raises TextError where it is none."""
    try:
        fields = json.loads(definition)
    except (json.JSONDecodeError, RecursionError) as error:
        raise TextError(f"expected a tokenizer.json, got no JSON: {error}") from error
    model = fields.get("model") if isinstance(fields, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), (dict, list)):
        raise TextError("expected a tokenizer.json with a model that has a vocab, got another file")
    return {**fields, "added_tokens": fields.get("added_tokens") or []}


@contextmanager
def refusals(expected: str, texts: Sequence[str] = ()) -> Iterator[None]:
    """Raises TextError where the tokenizers library refuses a tokenizer or one of these texts."""
    try:
        yield
    except Exception as error:  # the class that the library raises
        halves = filter(None, map(SURROGATE.search, texts))
        reason = next((f"half a surrogate pair, {half[0]!a}" for half in halves), str(error))
        raise TextError(f"expected {expected}, got {reason}") from error


def build(definition: str | TokenizerJson) -> FastTokenizer:
    """The library's tokenizer, which neither cuts nor pads what it encodes.

    Raises TextError where the library refuses it.
    """
    text = definition if isinstance(definition, str) else json.dumps(definition)
    with refusals("a tokenizer.json that the tokenizers library can read"):
        fast = FastTokenizer.from_str(text)
    fast.no_truncation()
    fast.no_padding()
    return fast


def is_markup(name: str) -> bool:
    """Whether a token is spelled as markup, in angle or square brackets."""
    return len(name) > 2 and (name[0], name[-1]) in (("<", ">"), ("[", "]"))


def is_control(token: Mapping[str, Any]) -> bool:
    """Whether an added token is a control token, or the unknown token."""
    name = token["content"].strip()
    return is_markup(name) or (token["special"] and len(name) > 1)


def vocabulary(fields: TokenizerJson) -> dict[str, int]:
    """The model's entries and their ids."""
    vocab = fields["model"]["vocab"]
    if isinstance(vocab, dict):
        return vocab
    return {piece: number for number, (piece, _) in enumerate(vocab)}


def count_embedding_rows(fields: TokenizerJson) -> int:
    """Rows of a table that has one for every id.

    Raises TextError where most of them would have no entry.
    """
    vocab, added = vocabulary(fields), {one["content"]: one["id"] for one in fields["added_tokens"]}
    rows = max(max(vocab.values(), default=-1), *added.values(), -1) + 1
    free = rows - len(vocab) - sum(name not in vocab for name in added)
    if free > MAX_FREE_IDS:
        raise TextError(
            f"the ids of the tokenizer leave {free} numbers free, expected at most {MAX_FREE_IDS}; "
            "number its added tokens from the end of its vocabulary"
        )
    return rows


def unknown_token(fields: TokenizerJson) -> str | None:
    """The entry that the model gives for characters its vocabulary lacks."""
    model = fields["model"]
    number = model.get("unk_id")
    return model["vocab"][number][0] if number is not None else model.get("unk_token")


def with_added(definition: str, fields: TokenizerJson, names: Collection[str]) -> str:
    """The definition of these fields in which entries of these names are added tokens, as
    transformers makes those that the files beside it call special."""
    vocab, added = vocabulary(fields), {token["content"] for token in fields["added_tokens"]}
    absent = [name for name in dict.fromkeys(names) if name in vocab and name not in added]
    if not absent:
        return definition
    more = [
        {**CONTROL_TOKEN_FLAGS, "id": vocab[n], "content": n, "special": is_markup(n)}
        for n in absent
    ]
    return json.dumps({**fields, "added_tokens": fields["added_tokens"] + more}, ensure_ascii=False)


# --- ids ---


def misnumbered(fields: TokenizerJson, fast: FastTokenizer) -> list[str]:
    """The added tokens that the library gives other ids than the file does."""
    added = fields["added_tokens"]
    return [one["content"] for one in added if fast.token_to_id(one["content"]) != one["id"]]


def renumber(fields: TokenizerJson) -> TokenizerJson:
    """The definition as the library reads it with the ids of the file.

    The library numbers added tokens one after the other. So ids without an entry get one, as
    transformers does for vocabularies of tiktoken; ids that lie below the size of a vocabulary are
    written into that. Raises TextError where the ids cannot be kept.
    """
    vocab = vocabulary(fields)
    added = fields["added_tokens"]
    entries = vocab | {one["content"]: one["id"] for one in added}
    taken = set(entries.values())
    fill = [
        {"id": number, "content": f"<|reserved_token_{number}|>", **CONTROL_TOKEN_FLAGS}
        for number in range(max(taken))
        if number not in taken
    ]
    filled = {**fields, "added_tokens": sorted([*added, *fill], key=lambda one: one["id"])}
    wrong = misnumbered(filled, build(filled))
    if wrong and isinstance(fields["model"]["vocab"], dict):
        ids = {one["content"]: one["id"] for one in filled["added_tokens"]}
        wrong = [name for name, number in ids.items() if vocab.get(name, number) != number]
        filled["model"] = {**fields["model"], "vocab": ids | vocab}
    if wrong or len(taken) < len(entries):
        name = wrong[0] if wrong else _twice(entries)
        raise TextError(
            f"the tokenizer gives {name!r} an id that another entry has, or has it twice; "
            "number its added tokens from the end of its vocabulary"
        )
    return filled


def _twice(entries: Mapping[str, int]) -> str:
    """An entry, the last of those there are, whose id another has too."""
    names = {number: name for name, number in reversed(entries.items())}
    return next(name for name, number in reversed(entries.items()) if names[number] != name)
