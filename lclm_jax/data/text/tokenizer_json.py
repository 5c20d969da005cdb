"""The fields of a `tokenizer.json`, and which of its added tokens are control tokens.

Added tokens are of two kinds. *Control tokens* are special tokens or are spelled as markup
(`<...>`, `[...]`): only chat templates and tags may produce them. All others are *added words*,
which are part of how text is encoded; so are single characters and spaces marked as special.

The model's unknown token is not a control token as long as it has no other use, since text with
characters outside the vocabulary contains it. If it also ends texts or turns, it is one.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tokenizers import Tokenizer as LibraryTokenizer

from lclm_jax.errors import TextError

TokenizerJson = dict[str, Any]

MAX_UNUSED_IDS = 65_536
CONTROL_TOKEN_FLAGS = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}
SURROGATE = re.compile("[\ud800-\udfff]")
MARKUP_BRACKETS = (("<", ">"), ("[", "]"))


def parse_tokenizer_json(definition: str) -> TokenizerJson:
    """Return the fields of a `tokenizer.json`; raises TextError for any other text."""
    try:
        fields = json.loads(definition)
    except (json.JSONDecodeError, RecursionError) as error:
        raise TextError(f"expected a tokenizer.json, got no JSON: {error}") from error

    model = fields.get("model") if isinstance(fields, dict) else None
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, (dict, list)):
        raise TextError("expected a tokenizer.json with a model that has a vocab, got another file")

    return {**fields, "added_tokens": fields.get("added_tokens") or []}


@contextmanager
def library_errors_as_text_errors(expected: str, texts: Sequence[str] = ()) -> Iterator[None]:
    """Raise TextError where the tokenizers library refuses a tokenizer or one of the texts."""
    try:
        yield
    except Exception as error:  # the library raises no narrower class
        reason = str(error)
        for text in texts:
            if surrogate := SURROGATE.search(text):
                reason = f"half a surrogate pair, {surrogate[0]!a}"
                break
        raise TextError(f"expected {expected}, got {reason}") from error


def build_library_tokenizer(definition: str | TokenizerJson) -> LibraryTokenizer:
    """Return the library's tokenizer, with truncation and padding turned off.

    Raises TextError where the library refuses the definition.
    """
    text = definition if isinstance(definition, str) else json.dumps(definition)
    with library_errors_as_text_errors("a tokenizer.json that the tokenizers library can read"):
        tokenizer = LibraryTokenizer.from_str(text)

    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def is_markup(name: str) -> bool:
    """Return whether a token is spelled in angle or square brackets.

    >>> [is_markup(name) for name in ("<think>", "[INST]", "<>", "!")]
    [True, True, False, False]
    """
    return len(name) > 2 and (name[0], name[-1]) in MARKUP_BRACKETS


def is_control_token(token: Mapping[str, Any]) -> bool:
    """Return whether an added token is a control token or the unknown token."""
    name = token["content"].strip()
    return is_markup(name) or (token["special"] and len(name) > 1)


def get_vocabulary(fields: TokenizerJson) -> dict[str, int]:
    """Return the ids of the model's own entries, by their text."""
    vocab = fields["model"]["vocab"]
    if isinstance(vocab, dict):
        return vocab
    return {piece: number for number, (piece, _) in enumerate(vocab)}


def get_added_ids(fields: TokenizerJson) -> dict[str, int]:
    """Return the ids of the added tokens, by their text."""
    return {token["content"]: token["id"] for token in fields["added_tokens"]}


def count_embedding_rows(fields: TokenizerJson) -> int:
    """Return the number of embedding rows needed to cover every token id.

    Raises TextError where more than MAX_UNUSED_IDS of the rows would have no token.
    """
    vocab = get_vocabulary(fields)
    added = get_added_ids(fields)
    rows = max([-1, *vocab.values(), *added.values()]) + 1

    names = vocab.keys() | added.keys()
    unused = rows - len(names)
    if unused > MAX_UNUSED_IDS:
        raise TextError(
            f"the ids of the tokenizer leave {unused} numbers unused, "
            f"expected at most {MAX_UNUSED_IDS}; "
            "number its added tokens from the end of its vocabulary"
        )
    return rows


def find_unknown_token(fields: TokenizerJson) -> str | None:
    """Return the entry that stands for characters outside the model's vocabulary."""
    model = fields["model"]
    number = model.get("unk_id")
    if number is None:
        return model.get("unk_token")
    return model["vocab"][number][0]


def add_special_tokens(definition: str, fields: TokenizerJson, names: Collection[str]) -> str:
    """Return the definition with the vocabulary entries of these names as added tokens.

    transformers does the same for tokens that `tokenizer_config.json` calls special.
    """
    vocab = get_vocabulary(fields)
    added = get_added_ids(fields)
    absent = [name for name in dict.fromkeys(names) if name in vocab and name not in added]
    if not absent:
        return definition

    tokens = [
        {**CONTROL_TOKEN_FLAGS, "id": vocab[name], "content": name, "special": is_markup(name)}
        for name in absent
    ]
    extended = {**fields, "added_tokens": fields["added_tokens"] + tokens}
    return json.dumps(extended, ensure_ascii=False)


# --- ids ---


def find_misnumbered(fields: TokenizerJson, tokenizer: LibraryTokenizer) -> list[str]:
    """Return the added tokens whose id in the library is not that of the file."""
    tokens = [(token["content"], token["id"]) for token in fields["added_tokens"]]
    return [name for name, number in tokens if tokenizer.token_to_id(name) != number]


def keep_file_ids(fields: TokenizerJson) -> TokenizerJson:
    """Return the definition changed so that the library reads the ids of the file.

    The library numbers added tokens consecutively. So unused ids get a reserved token, as
    transformers does for tiktoken vocabularies, and added tokens whose id is below the size of
    the vocabulary are written into the vocabulary.

    Raises TextError where the ids cannot be kept.
    """
    vocab = get_vocabulary(fields)
    entries = vocab | get_added_ids(fields)
    used_ids = set(entries.values())
    tokens = [*fields["added_tokens"], *_reserved_tokens(used_ids)]
    tokens.sort(key=lambda token: token["id"])

    filled = {**fields, "added_tokens": tokens}
    wrong = find_misnumbered(filled, build_library_tokenizer(filled))
    if wrong and isinstance(fields["model"]["vocab"], dict):
        ids = get_added_ids(filled)
        wrong = [name for name, number in ids.items() if vocab.get(name, number) != number]
        filled["model"] = {**fields["model"], "vocab": ids | vocab}

    if wrong or len(used_ids) < len(entries):
        name = wrong[0] if wrong else _find_duplicate(entries)
        raise TextError(
            f"the tokenizer gives {name!r} an id that another entry has, or has it twice; "
            "number its added tokens from the end of its vocabulary"
        )
    return filled


def _reserved_tokens(used_ids: Collection[int]) -> list[dict[str, Any]]:
    """Return an added token for every unused id below the largest."""
    return [
        {"id": number, "content": f"<|reserved_token_{number}|>", **CONTROL_TOKEN_FLAGS}
        for number in range(max(used_ids))
        if number not in used_ids
    ]


def _find_duplicate(entries: dict[str, int]) -> str:
    """Return the last entry whose id an earlier entry has, too."""
    first_names = {number: name for name, number in reversed(entries.items())}
    return next(name for name, number in reversed(entries.items()) if first_names[number] != name)
