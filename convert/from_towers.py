"""Builds an untrained LCLM from two base models.

    python -m convert.from_towers --encoder HF_DIR --decoder HF_DIR --out CHECKPOINT

The decoder gets the memory tokens and rows for them; the adapter is initialised at random. With
--random only shapes are read, from directories or by name (configs/models/shapes.py), and all
weights are random.
"""

import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np

from configs.models.shapes import SHAPES
from convert.from_hf import streamed
from convert.hf.config import read_tower
from convert.hf.files import list_tower, write_json
from convert.hf.mapping import Source, find_sources
from convert.hf.provenance import PROVENANCE, hash_files
from convert.hf.tokenizer import check_shared
from lclm_jax.checkpoint.model_files import save_streamed
from lclm_jax.checkpoint.streaming import Streamed
from lclm_jax.cli import add_set_argument, make_parser, path, run, setting
from lclm_jax.config import ModelConfig, TransformerConfig
from lclm_jax.config.settings import Directory, Seed
from lclm_jax.config.values import override
from lclm_jax.data.text.tokenizer import MEMORY_TOKENS, Tokenizer, add_memory_tokens
from lclm_jax.files.directories import check_path, new_directory
from lclm_jax.model.params import flatten, init_boxed, parameter_shapes

# A base language model has a head, which an encoder does not use.
UNUSED_ENCODER_KEY = "lm_head.weight"
ROWS_PER_READ = 4096  # rows of an embedding table in memory at a time


def build_from_towers(
    encoder: str | Path,
    decoder: str | Path,
    destination: str | Path,
    settings: Sequence[str] = (),
    seed: int = 0,
) -> Path:
    """Build an LCLM whose towers are base models in Hugging Face directories.

    `settings` change the ModelConfig, such as "compression.ratio=8". Towers keep their stored
    dtypes; the adapter is float32. Returns `destination`. Raises ConversionError when the models
    cannot be used or do not share a tokenizer; nothing is written then.
    """
    towers = {"encoder": Path(encoder), "decoder": Path(decoder)}
    check_path(destination, "the destination")
    with new_directory(destination, encoder, decoder) as directory:
        stored = {part: list_tower(place) for part, place in towers.items()}
        stored["encoder"] = [
            tensor for tensor in stored["encoder"] if tensor.key != UNUSED_ENCODER_KEY
        ]
        check_shared(towers["encoder"], towers["decoder"])
        tokenizer = add_memory_tokens(Tokenizer.load(towers["decoder"]))
        encoder_config, decoder_config = (
            read_tower(place / "config.json", causal=True) for place in towers.values()
        )
        base = override(ModelConfig(encoder_config, decoder_config), *settings)
        base_dtypes = {tensor.dtype for tensor in stored["decoder"]}
        config = _with_vocab(base, tokenizer, "float32" if base_dtypes == {"F32"} else "bfloat16")
        leaves = {
            path: _resize_table(path, source, config)
            for path, source in find_sources(stored, base).items()
        }
        leaves |= random_leaves(config, seed, lambda path: path.startswith("adapter/"))
        with streamed(leaves, "writing MB") as params:
            save_streamed(directory, config, params)
        tokenizer.save(directory / "tokenizer")
        files = {part: hash_files(tensors, towers[part]) for part, tensors in stored.items()}
        write_json(
            directory / PROVENANCE,
            {"source": {part: str(place) for part, place in towers.items()}, "files": files},
        )
    return Path(destination)


def build_random(
    encoder: str,
    decoder: str,
    destination: str | Path,
    tokenizer: str | Path,
    settings: Sequence[str] = (),
    seed: int = 0,
) -> Path:
    """Build an LCLM of random float32 weights.

    A tower is a name in configs/models/shapes.py or a directory with config.json. The tables have a
    row for every entry of the tokenizer. Returns `destination`.
    """
    check_path(destination, "the destination")
    with new_directory(destination, encoder, decoder, tokenizer) as directory:
        with_memory = add_memory_tokens(Tokenizer.load(tokenizer))
        base = ModelConfig(_tower_config(encoder), _tower_config(decoder))
        config = _with_vocab(override(base, *settings), with_memory, "bfloat16")
        config = override(config, f"encoder.vocab={config.decoder.vocab - len(MEMORY_TOKENS)}")
        with streamed(random_leaves(config, seed), "writing MB") as params:
            save_streamed(directory, config, params)
        with_memory.save(directory / "tokenizer")
        write_json(
            directory / PROVENANCE,
            {"source": {"encoder": encoder, "decoder": decoder, "seed": seed}},
        )
    return Path(destination)


def random_leaves(
    config: ModelConfig, seed: int, selected: Callable[[str], bool] = lambda path: True
) -> dict[str, Streamed]:
    """Return randomly initialised float32 parameters by path.

    A parameter is made as a whole when it is first read, and dropped when the next one is.
    """

    @cache
    def make_parameter(path: str) -> np.ndarray:
        make_parameter.cache_clear()
        make = jax.jit(lambda rng: flatten(nn.meta.unbox(init_boxed(config, rng)))[path])
        return np.asarray(make(jax.random.key(seed)))

    def read(path: str, start: int, stop: int) -> np.ndarray:
        return make_parameter(path)[start:stop]

    shapes = {path: shape for path, shape in parameter_shapes(config).items() if selected(path)}
    return {
        path: Streamed(shape, np.dtype(np.float32), partial(read, path))
        for path, shape in shapes.items()
    }


def _resize_table(path: str, source: Source, config: ModelConfig) -> Streamed:
    """Return a parameter of a base model, with tables resized to the decoder's vocabulary.

    New rows are the mean of all rows.
    """
    if path not in ("decoder/table", "head"):
        return source.leaf()
    stored_rows, width = source.shape

    @cache
    def mean() -> np.ndarray:
        total = np.zeros(width, np.float64)
        for start in range(0, stored_rows, ROWS_PER_READ):
            block = source.read(start, min(start + ROWS_PER_READ, stored_rows))
            total += block.astype(np.float64).sum(axis=0)
        return (total / stored_rows).astype(source.dtype)

    def read(start: int, stop: int) -> np.ndarray:
        block = source.read(min(start, stored_rows), min(stop, stored_rows))
        new_rows = stop - start - len(block)
        if not new_rows:
            return block
        return np.concatenate([block, np.broadcast_to(mean(), (new_rows, width))])

    return Streamed((config.decoder.vocab, width), source.dtype, read)


def _with_vocab(config: ModelConfig, tokenizer: Tokenizer, dtype: str) -> ModelConfig:
    """Return the config with a row in the decoder's table for every entry of the tokenizer."""
    return override(config, f"decoder.vocab={tokenizer.embedding_rows}", f"dtype={dtype}")


def _tower_config(name: str) -> TransformerConfig:
    """Return the shape of this name, or the one in a directory with config.json."""
    if name in SHAPES:
        return SHAPES[name]
    file = Path(name) / "config.json"
    if not file.exists():
        raise FileNotFoundError(
            f"{name}: neither a directory with config.json "
            f"nor one of the shapes {', '.join(SHAPES)}"
        )
    return read_tower(file, causal=True)


def main():
    parser = make_parser(__doc__)
    parser.add_argument(
        "--encoder",
        type=setting(Directory),
        required=True,
        help="directory of the base model; with --random also a shape's name",
    )
    parser.add_argument(
        "--decoder", type=setting(Directory), required=True, help="the same for the decoder"
    )
    parser.add_argument("--out", type=path, required=True, help="new directory for the checkpoint")
    parser.add_argument(
        "--random", action="store_true", help="fresh weights; only shapes are taken from the towers"
    )
    parser.add_argument(
        "--tokenizer",
        type=setting(Directory),
        help="directory with tokenizer.json, for --random (default: the decoder's)",
    )
    add_set_argument(parser, "change a setting of the model, as compression.ratio=8; repeatable")
    parser.add_argument("--seed", type=setting(Seed), default=0)
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    towers = arguments.encoder, arguments.decoder, arguments.out
    if arguments.random:
        tokenizer = arguments.tokenizer or arguments.decoder
        written = build_random(*towers, tokenizer, arguments.set, arguments.seed)
    else:
        written = build_from_towers(*towers, arguments.set, arguments.seed)
    sys.stdout.write(f"wrote {written.resolve()}\n")


if __name__ == "__main__":
    run(main)
