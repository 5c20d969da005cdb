"""An untrained LCLM from two base models: python -m convert.from_towers --encoder HF_DIR --decoder HF_DIR --out CHECKPOINT

The decoder gets the memory tokens and rows for them, the adapter is fresh. With --random only shapes are taken, from
directories or by name (configs/models/shapes.py), and every weight is fresh.
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
from convert.hf.mapping import Source, find_sources, parameter_shapes
from convert.hf.provenance import PROVENANCE, hash_files
from convert.hf.tokenizer import check_shared
from lclm_jax.checkpoint.model_files import save_streamed
from lclm_jax.checkpoint.streaming import Streamed
from lclm_jax.cli import make_parser, path, run, setting
from lclm_jax.config import ModelConfig, TransformerConfig
from lclm_jax.config.settings import Directory, Seed
from lclm_jax.config.values import override
from lclm_jax.data.text.tokenizer import MEMORY_TOKENS, Tokenizer, add_memory_tokens
from lclm_jax.files.directories import check_path, new_directory
from lclm_jax.model.params import flatten, init_boxed

HEAD = "lm_head.weight"  # of an encoder made from a language model: it has no use for it


def init(
    encoder: str | Path,
    decoder: str | Path,
    destination: str | Path,
    settings: Sequence[str] = (),
    seed: int = 0,
) -> Path:
    """An LCLM whose towers are the base models in two Hugging Face directories. Returns `destination`.

    `settings` are changes to the ModelConfig, as in "compression.ratio=8". Towers keep their stored dtypes; the adapter is
    float32. Raises ConversionError when the models cannot be used or do not share a tokenizer; nothing is written then.
    """
    towers = {"encoder": Path(encoder), "decoder": Path(decoder)}
    check_path(destination, "the destination")
    with new_directory(destination, encoder, decoder) as directory:
        stored = {part: list_tower(place) for part, place in towers.items()}
        stored["encoder"] = [tensor for tensor in stored["encoder"] if tensor.key != HEAD]
        check_shared(towers["encoder"], towers["decoder"])
        tokenizer = add_memory_tokens(Tokenizer.load(towers["decoder"]))
        base = _model(
            *(read_tower(place / "config.json", causal=True) for place in towers.values()), settings
        )
        base_dtypes = {tensor.dtype for tensor in stored["decoder"]}
        config = _with_vocab(base, tokenizer, "float32" if base_dtypes == {"F32"} else "bfloat16")
        leaves = {
            path: _resized(path, source, config)
            for path, source in find_sources(stored, base).items()
        }
        leaves |= fresh(config, seed, lambda path: path.startswith("adapter/"))
        with streamed(leaves, "writing MB") as params:
            save_streamed(directory, config, params)
        tokenizer.save(directory / "tokenizer")
        files = {part: hash_files(tensors, towers[part]) for part, tensors in stored.items()}
        write_json(
            directory / PROVENANCE,
            {"source": {part: str(place) for part, place in towers.items()}, "files": files},
        )
    return Path(destination)


def init_random(
    encoder: str,
    decoder: str,
    destination: str | Path,
    tokenizer: str | Path,
    settings: Sequence[str] = (),
    seed: int = 0,
) -> Path:
    """An LCLM of fresh float32 weights. A tower is a name in configs/models/shapes.py or a directory with config.json; the tables
    have a row for every entry of the tokenizer. Returns `destination`."""
    check_path(destination, "the destination")
    with new_directory(destination, encoder, decoder, tokenizer) as directory:
        whole = add_memory_tokens(Tokenizer.load(tokenizer))
        config = _with_vocab(_model(_shape(encoder), _shape(decoder), settings), whole, "bfloat16")
        config = override(config, f"encoder.vocab={config.decoder.vocab - len(MEMORY_TOKENS)}")
        with streamed(fresh(config, seed, lambda path: True), "writing MB") as params:
            save_streamed(directory, config, params)
        whole.save(directory / "tokenizer")
        write_json(
            directory / PROVENANCE,
            {"source": {"encoder": encoder, "decoder": decoder, "seed": seed}},
        )
    return Path(destination)


def fresh(config: ModelConfig, seed: int, chosen: Callable[[str], bool]) -> dict[str, Streamed]:
    """Newly initialised float32 parameters, each made whole when it is first asked for, and forgotten for the next one."""

    @cache
    def last(path: str) -> np.ndarray:
        last.cache_clear()
        make = jax.jit(lambda rng: flatten(nn.meta.unbox(init_boxed(config, rng)))[path])
        return np.asarray(make(jax.random.key(seed)))

    def read(path: str, start: int, stop: int) -> np.ndarray:
        return last(path)[start:stop]

    shapes = {path: shape for path, shape in parameter_shapes(config).items() if chosen(path)}
    return {
        path: Streamed(shape, np.dtype(np.float32), partial(read, path))
        for path, shape in shapes.items()
    }


def _resized(path: str, source: Source, config: ModelConfig) -> Streamed:
    """A base model's parameter; a table is cut or grown to the decoder's vocabulary, new rows being the mean of all."""
    if path not in ("decoder/table", "head"):
        return source.leaf()
    held, width = source.shape

    @cache
    def mean() -> np.ndarray:
        blocks = (
            source.read(i, min(i + 4096, held)).astype(np.float64).sum(axis=0)
            for i in range(0, held, 4096)
        )
        return (sum(blocks) / held).astype(source.dtype)

    def read(start: int, stop: int) -> np.ndarray:
        block = source.read(min(start, held), min(stop, held))
        new = stop - start - len(block)
        return np.concatenate([block, np.broadcast_to(mean(), (new, width))]) if new else block

    return Streamed((config.decoder.vocab, width), source.dtype, read)


def _model(
    encoder: TransformerConfig, decoder: TransformerConfig, settings: Sequence[str]
) -> ModelConfig:
    return override(ModelConfig(encoder, decoder), *settings)


def _with_vocab(config: ModelConfig, tokenizer: Tokenizer, dtype: str) -> ModelConfig:
    """The decoder's table has a row for every entry of the tokenizer."""
    return override(config, f"decoder.vocab={tokenizer.embedding_rows}", f"dtype={dtype}")


def _shape(name: str) -> TransformerConfig:
    if name in SHAPES:
        return SHAPES[name]
    file = Path(name) / "config.json"
    if not file.exists():
        raise FileNotFoundError(
            f"{name}: neither a directory with config.json nor one of the shapes {', '.join(SHAPES)}"
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
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the model, as compression.ratio=8",
    )
    parser.add_argument("--seed", type=setting(Seed), default=0)
    a = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    if a.random:
        written = init_random(a.encoder, a.decoder, a.out, a.tokenizer or a.decoder, a.set, a.seed)
    else:
        written = init(a.encoder, a.decoder, a.out, a.set, a.seed)
    sys.stdout.write(f"wrote {written.resolve()}\n")


if __name__ == "__main__":
    run(main)
