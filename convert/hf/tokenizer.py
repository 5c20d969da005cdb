"""Tokenizers of the two towers: one vocabulary; only the decoder's has the memory tokens."""

import json
from pathlib import Path
from typing import Any

from convert.hf.files import Published, read_json
from convert.hf.mapping import ConversionError
from lclm_jax.config import ModelConfig
from lclm_jax.data.text.tokenizer import MEMORY_TOKENS, PAD, TextError, Tokenizer
from lclm_jax.data.text.tokenizer_files import read_text
from lclm_jax.data.text.tokenizer_json import (
    CONTROL_TOKEN_FLAGS,
    TokenizerJson,
    build_library_tokenizer,
    count_embedding_rows,
    parse_tokenizer_json,
)

TEXT_PARTS = ("normalizer", "pre_tokenizer", "model")  # of a tokenizer.json


def read_tokenizer(published: Published, config: ModelConfig) -> Tokenizer | None:
    """Read the decoder's tokenizer, or None where a checkpoint has none.

    Raises ConversionError where a memory token is missing, an embedding table is too small, or the
    encoder's tokenizer splits text in another way.
    """
    if not (published.decoder / "tokenizer.json").exists():
        return None
    tokenizer = Tokenizer.load(published.decoder)
    absent = [name for name in MEMORY_TOKENS if name not in tokenizer.control]
    if absent:
        raise ConversionError(
            f"{published.decoder}/tokenizer.json has no {', '.join(absent)}; "
            "expected all memory tokens"
        )
    for tower, needed, table in (
        ("decoder", tokenizer.embedding_rows, config.decoder.vocab),
        (
            "encoder",
            count_embedding_rows(_without_memory(tokenizer.definition)),
            config.encoder.vocab,
        ),
    ):
        if needed > table:
            raise ConversionError(
                f"the {tower}'s table has {table} rows, its tokenizer needs {needed}; "
                "one of them is of another model"
            )
    check_shared(published.encoder, published.decoder)
    if config.compression.pooling == "eos":
        _check_marker(published.encoder / "tokenizer_config.json")
    return tokenizer


def check_shared(encoder: Path, decoder: Path):
    """Check that both towers' tokenizers, where both exist, give a text the same tokens.

    Raises ConversionError that names the parts that differ.
    """
    file, other = (place / "tokenizer.json" for place in (encoder, decoder))
    if not (file.exists() and other.exists()):
        return
    try:
        differing = compare(read_text(file), read_text(other))
    except TextError as error:
        raise ConversionError(f"{encoder} or {decoder}: {error}") from error
    if differing:
        raise ConversionError(
            f"{file} is not the decoder's without its memory tokens, it has another "
            f"{', another '.join(differing)}; one tokenizer must serve both towers"
        )


def compare(definition: str, other: str) -> list[str]:
    """Name the parts of two `tokenizer.json` that differ and decide a text's tokens.

    Memory tokens, offsets, decoders and the template around a text decide none.
    """
    left, right = (_without_memory(text) for text in (definition, other))
    differing = [part for part in TEXT_PARTS if left.get(part) != right.get(part)]
    if differing:  # perhaps only one file spells out a default
        left, right = (_with_defaults(fields) for fields in (left, right))
        differing = [part for part in differing if left.get(part) != right.get(part)]
    return differing + (["added_tokens"] if _added_tokens(left) != _added_tokens(right) else [])


def _without_memory(definition: str) -> TokenizerJson:
    fields = parse_tokenizer_json(definition)
    others = [token for token in fields["added_tokens"] if token["content"] not in MEMORY_TOKENS]
    return {**fields, "added_tokens": others}


def _added_tokens(fields: TokenizerJson) -> dict[str, Any]:
    """Return the id and matching rules of every added token, by its content."""
    return {
        token["content"]: {
            key: token.get(key) for key in ("id", *CONTROL_TOKEN_FLAGS) if key != "special"
        }
        for token in fields["added_tokens"]
    }


def _with_defaults(fields: TokenizerJson) -> TokenizerJson:
    """Return the definition with every default filled in, without settings of offsets."""

    def drop_offsets(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: value for key, value in pairs if key != "trim_offsets"}

    bare = {part: fields.get(part) for part in ("version", *TEXT_PARTS)} | {"added_tokens": []}
    spelled = json.loads(build_library_tokenizer(bare).to_str(), object_pairs_hook=drop_offsets)
    return {**spelled, "added_tokens": fields["added_tokens"]}


def _check_marker(settings: Path):
    marker = read_json(settings).get("pad_token", PAD) if settings.exists() else PAD
    marker = marker["content"] if isinstance(marker, dict) else marker
    if marker != PAD:
        raise ConversionError(
            f"{settings}: eos pooling marks latents with pad_token, expected {PAD}, got {marker}"
        )


def without_memory(tokenizer: Tokenizer) -> Tokenizer:
    """Return the encoder's tokenizer: the decoder's without the three memory tokens."""
    fields = _without_memory(tokenizer.definition)
    return tokenizer.with_definition(json.dumps(fields, indent=2, ensure_ascii=False))
