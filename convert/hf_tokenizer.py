"""The tokenizers of the two towers: one vocabulary, and three memory tokens that only the decoder's has."""

import json
from pathlib import Path

from convert.hf_files import Published, read_json
from convert.mapping import ConversionError
from lclm_jax.config import ModelConfig
from lclm_jax.data.tokens import MEMORY, PAD, Tokenizer, rows


def read_tokenizer(published: Published, config: ModelConfig) -> Tokenizer | None:
    """The decoder's tokenizer, if there is one, checked to serve the encoder too and to fit both tables.

    Raises ConversionError where it does not.
    """
    if not (published.decoder / "tokenizer.json").exists():
        return None
    tokenizer = Tokenizer.load(published.decoder)
    absent = [name for name in MEMORY if name not in tokenizer.control]
    if absent:
        raise ConversionError(
            f"{published.decoder}/tokenizer.json has no {', '.join(absent)}; expected all memory tokens"
        )
    for tower, needed, table in (
        ("decoder", rows(tokenizer), config.decoder.vocab),
        ("encoder", tokenizer.size - len(MEMORY), config.encoder.vocab),
    ):
        if needed > table:
            raise ConversionError(
                f"the {tower}'s table has {table} rows, its tokenizer needs {needed}; one of them is of another model"
            )
    check_shared(published.encoder, published.decoder)
    if config.compression.pooling == "eos":
        _check_marker(published.encoder / "tokenizer_config.json")
    return tokenizer


def check_shared(encoder: Path, decoder: Path):
    """Raises ConversionError when the encoder's directory has a tokenizer that splits text otherwise than the decoder's."""
    if (encoder / "tokenizer.json").exists() and _vocabulary(
        Tokenizer.load(encoder)
    ) != _vocabulary(Tokenizer.load(decoder)):
        raise ConversionError(
            f"{encoder}/tokenizer.json is not the decoder's without its memory tokens; one tokenizer must serve both towers"
        )


def _vocabulary(tokenizer: Tokenizer) -> tuple[dict[str, int], object]:
    """What decides how text is split: control tokens but those of memory, and the model."""
    control = {name: number for name, number in tokenizer.control.items() if name not in MEMORY}
    return control, json.loads(tokenizer.definition)["model"]


def _check_marker(settings: Path):
    marker = read_json(settings).get("pad_token", PAD) if settings.exists() else PAD
    marker = marker["content"] if isinstance(marker, dict) else marker
    if marker != PAD:
        raise ConversionError(
            f"{settings}: eos pooling marks latents with pad_token, expected {PAD}, got {marker}"
        )


def without_memory(tokenizer: Tokenizer) -> Tokenizer:
    """The encoder's tokenizer: the decoder's without the three memory tokens."""
    fields = json.loads(tokenizer.definition)
    kept = [token for token in fields["added_tokens"] if token["content"] not in MEMORY]
    return Tokenizer(
        json.dumps({**fields, "added_tokens": kept}, indent=2, ensure_ascii=False),
        tokenizer.template,
    )
