"""Our checkpoint to the published layout, in float32: python -m convert.to_hf CHECKPOINT DESTINATION"""

import argparse
import json
import sys
from pathlib import Path

import jax

from convert.from_hf import MEMORY
from convert.hf_config import write_compression, write_generation, write_tower
from convert.hf_files import ADAPTER, SINGLE, new_directory, write_json, write_tensors
from convert.mapping import publish_params
from lclm_jax.checkpoint import load_params, read_model_files
from lclm_jax.command import run
from lclm_jax.config import MeshConfig, ModelConfig
from lclm_jax.data.tokens import Tokenizer
from lclm_jax.progress import track
from lclm_jax.sharding import make_mesh
from lclm_jax.state import abstract_params
from lclm_jax.typing import Params


def to_hf(checkpoint: str | Path, destination: str | Path, step: int | None = None) -> Path:
    """Converts a training run, or what `from_hf` wrote, into the published layout. Returns `destination`.

    Takes the newest step unless one is named. Raises FileNotFoundError or CheckpointError for a checkpoint that is not
    there or does not fit its config, FileExistsError when there is such a destination; nothing is written then.
    """
    with new_directory(destination) as directory:
        config, tokenizer = read_model_files(checkpoint)
        abstract = abstract_params(config, make_mesh(MeshConfig(), jax.devices()[:1]))
        write_hf(directory, config, tokenizer, load_params(checkpoint, abstract, step))
    return Path(destination)


def write_hf(directory: Path, config: ModelConfig, tokenizer: Tokenizer, params: Params):
    """Writes every file of the published layout into `directory`."""
    parts = publish_params(params)
    files = {"decoder": f"decoder/{SINGLE}", "encoder": f"encoder/{SINGLE}", "adapter": ADAPTER[0]}
    for part, file in track(list(files.items()), "writing tensors"):
        write_tensors(directory / file, parts[part])
    for part, tower, architecture, its_tokenizer in (
        ("decoder", config.decoder, "Qwen3ForCausalLM", tokenizer),
        ("encoder", config.encoder, "Qwen3Model", without_memory(tokenizer)),
    ):
        write_json(directory / part / "config.json", write_tower(tower, architecture, its_tokenizer))
        write_json(directory / part / "generation_config.json", write_generation(its_tokenizer))
        its_tokenizer.save(directory / part)
    model, processor = write_compression(config)
    write_json(directory / "model_config.json", model)
    write_json(directory / "processor_config.json", processor)


def without_memory(tokenizer: Tokenizer) -> Tokenizer:
    """The encoder's tokenizer: the decoder's without the three memory tokens."""
    fields = json.loads(tokenizer.definition)
    kept = [token for token in fields["added_tokens"] if token["content"] not in MEMORY]
    return Tokenizer(json.dumps({**fields, "added_tokens": kept}, indent=2, ensure_ascii=False), tokenizer.template)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="directory of a training run, or what convert.from_hf wrote")
    parser.add_argument("destination", help="new directory for the published layout")
    parser.add_argument("--step", type=int, help="saved step to convert (default: the newest)")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # moving numbers needs no accelerator, and would lock it
    written = to_hf(arguments.checkpoint, arguments.destination, arguments.step)
    sys.stdout.write(f"wrote {written.resolve()}\n")


if __name__ == "__main__":
    run(main)
