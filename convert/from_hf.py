"""A published checkpoint to ours: python -m convert.from_hf SOURCE DESTINATION"""

import argparse
import json
import sys
from pathlib import Path

import jax

from convert.hf_config import read_model_config
from convert.hf_files import Published, find_published, list_file, list_tower, new_directory, read_json
from convert.mapping import ConversionError, read_params
from lclm_jax.checkpoint import save_model
from lclm_jax.command import run
from lclm_jax.config import ModelConfig
from lclm_jax.data.tokens import MEMORY_END, MEMORY_SLOT, MEMORY_START, PAD, Tokenizer
from lclm_jax.typing import Params

MEMORY = (MEMORY_START, MEMORY_END, MEMORY_SLOT)


def from_hf(source: str | Path, destination: str | Path) -> Path:
    """Converts a published checkpoint into one `lclm_jax.language_model.load` reads. Returns `destination`.

    Raises ConversionError or FileNotFoundError that says everything that is wrong, FileExistsError when there is such a
    destination; nothing is written then.
    """
    with new_directory(destination) as directory:
        published = find_published(source)
        config, params = read_hf(source)
        save_model(directory, config, read_tokenizer(published, config), params)
    return Path(destination)


def read_hf(source: str | Path) -> tuple[ModelConfig, Params]:
    """Config and float32 parameters (numpy) of a published checkpoint; it needs no tokenizer."""
    published = find_published(source)
    stored = {
        "decoder": list_tower(published.decoder),
        "encoder": list_tower(published.encoder),
        "adapter": list_file(published.adapter),
    }
    dtypes = {tensor.dtype for tensor in stored["decoder"]}
    config = read_model_config(published, dtypes.pop() if len(dtypes) == 1 else "mixed")
    return config, read_params(stored, config)


def read_tokenizer(published: Published, config: ModelConfig) -> Tokenizer:
    """The decoder's tokenizer, checked to serve the encoder too: the same but for the memory tokens, within both tables."""
    tokenizer = Tokenizer.load(published.decoder)
    absent = [name for name in MEMORY if name not in tokenizer.control]
    if absent:
        raise ConversionError(f"{published.decoder}/tokenizer.json has no {', '.join(absent)}; expected all memory tokens")
    for tower, needed, table in (
        ("decoder", max(tokenizer.size, *(number + 1 for number in tokenizer.control.values())), config.decoder.vocab),
        ("encoder", tokenizer.size - len(MEMORY), config.encoder.vocab),
    ):
        if needed > table:
            raise ConversionError(
                f"the {tower}'s table has {table} rows, its tokenizer needs {needed}; one of them is of another model"
            )
    if (published.encoder / "tokenizer.json").exists():
        _check_encoder_tokenizer(published.encoder, tokenizer, config)
    return tokenizer


def _check_encoder_tokenizer(directory: Path, tokenizer: Tokenizer, config: ModelConfig):
    if vocabulary(Tokenizer.load(directory)) != vocabulary(tokenizer):
        raise ConversionError(
            f"{directory}/tokenizer.json is not the decoder's without its memory tokens; one tokenizer must serve both"
        )
    settings = directory / "tokenizer_config.json"
    marker = read_json(settings).get("pad_token", PAD) if settings.exists() else PAD
    marker = marker["content"] if isinstance(marker, dict) else marker
    if config.compression.pooling == "eos" and marker != PAD:
        raise ConversionError(f"{settings}: eos pooling marks latents with pad_token, expected {PAD}, got {marker}")


def vocabulary(tokenizer: Tokenizer) -> tuple[dict[str, int], object]:
    """What decides how text is split: control tokens but those of memory, and the model."""
    control = {name: number for name, number in tokenizer.control.items() if name not in MEMORY}
    return control, json.loads(tokenizer.definition)["model"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="directory with decoder/, encoder/, adapter/ and model_config.json")
    parser.add_argument("destination", help="new directory for the checkpoint")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # moving numbers needs no accelerator, and would lock it
    written = from_hf(arguments.source, arguments.destination)
    sys.stdout.write(f"wrote {written.resolve()}\n")


if __name__ == "__main__":
    run(main)
