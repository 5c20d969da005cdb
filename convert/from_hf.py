"""A published checkpoint to ours: python -m convert.from_hf SOURCE DESTINATION"""

import argparse
import hashlib
import json
import logging
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from convert.hf_config import read_model_config
from convert.hf_files import FileTensor, Published, find_published, list_file, list_tower, new_directory, read_json, write_json
from convert.mapping import COPIES, ConversionError, Source, find_sources
from lclm_jax.checkpoint import save_streamed
from lclm_jax.command import run
from lclm_jax.config import ModelConfig
from lclm_jax.data.tokens import MEMORY_END, MEMORY_SLOT, MEMORY_START, PAD, Tokenizer
from lclm_jax.optim import unflatten
from lclm_jax.progress import progress_bar
from lclm_jax.state import abstract_params
from lclm_jax.streaming import Streamed
from lclm_jax.typing import Params

log = logging.getLogger(__name__)
MEMORY = (MEMORY_START, MEMORY_END, MEMORY_SLOT)
PROVENANCE = "provenance.json"  # in a converted checkpoint: where its weights are from
ORIGINALS = "published"  # in a converted checkpoint: the source's small files, word for word
SMALL_FILES = (".json", ".jinja", ".txt")
HUB_FILES = ("*.safetensors", *(f"*{suffix}" for suffix in SMALL_FILES))


@dataclass(frozen=True)
class Opened:
    """A published checkpoint whose headers have been read and found to fit its settings."""

    published: Published
    config: ModelConfig
    stored: dict[str, list[FileTensor]]  # by part
    sources: dict[str, Source]  # by flat path of our parameter


def from_hf(source: str | Path, destination: str | Path, revision: str | None = None, rounded_rope: bool = False) -> Path:
    """Converts a published checkpoint into one `lclm_jax.language_model.load` reads. Returns `destination`.

    `source` is a directory or the name of a hub repository; its weights pass through memory a block at a time and keep
    their dtypes. Raises ConversionError or FileNotFoundError that says everything that is wrong, FileExistsError when there
    is such a destination; nothing is written then.
    """
    with new_directory(destination) as directory:
        place, commit = fetch(source, revision)
        opened = open_hf(place)
        config = round_rope(opened.config) if rounded_rope else opened.config
        tokenizer = read_tokenizer(opened.published, config)
        with ThreadPoolExecutor(max_workers=1) as beside:
            every = [tensor for tensors in opened.stored.values() for tensor in tensors]
            hashes = beside.submit(hash_files, every, opened.published.source)
            leaves = {path: Streamed(found.shape, found.dtype, found.read) for path, found in opened.sources.items()}
            with streamed(leaves, "writing MB") as params:
                save_streamed(directory, config, params)
            provenance = {"source": str(source), "revision": commit, "files": hashes.result(), **dtypes_of(opened)}
        write_json(directory / PROVENANCE, provenance)
        copy_originals(opened.published, directory / ORIGINALS)
        if tokenizer:
            tokenizer.save(directory / "tokenizer")
        else:
            log.warning("%s has no tokenizer: the checkpoint computes but cannot read text until it has tokenizer/", source)
    return Path(destination)


def read_hf(source: str | Path, mesh: Mesh | None = None) -> tuple[ModelConfig, Params]:
    """Config and float32 parameters of a published checkpoint, in numpy or, given a mesh, sharded over it as they are read."""
    opened = open_hf(Path(source))
    shapes = {path: (found.shape, found.read) for path, found in opened.sources.items()}

    def leaf(path: str) -> Streamed:
        shape, read = shapes[path]
        return Streamed(shape, np.dtype(np.float32), lambda start, stop: read(start, stop).astype(np.float32))

    if mesh is None:
        return opened.config, unflatten({path: leaf(path).read(0, shape[0]) for path, (shape, _) in shapes.items()})
    abstract = abstract_params(opened.config, mesh)
    paths = unflatten({path: path for path in shapes})
    return opened.config, jax.tree.map(lambda where, path: leaf(path).to_array(where.sharding), abstract, paths)


def fetch(source: str | Path, revision: str | None) -> tuple[Path, str | None]:
    """The directory of a published checkpoint, downloaded if `source` names a hub repository, and its commit there."""
    if Path(source).is_dir():
        if revision:
            raise ConversionError(f"{source} is a directory and has no revisions, got --revision {revision}; leave it out")
        return Path(source), None
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise FileNotFoundError(f"{source}: no such directory; expected a checkpoint with decoder/, encoder/ and adapter/")
    import huggingface_hub

    try:
        commit = huggingface_hub.HfApi().model_info(str(source), revision=revision).sha
        return Path(huggingface_hub.snapshot_download(str(source), revision=commit, allow_patterns=list(HUB_FILES))), commit
    except (OSError, huggingface_hub.errors.HfHubHTTPError, huggingface_hub.errors.HFValidationError) as error:
        raise FileNotFoundError(
            f"{source}: no such directory, and revision {revision or 'main'} could not be had from the hub: {error}"
        ) from error


def open_hf(source: str | Path) -> Opened:
    """Reads the settings and headers of a published checkpoint and checks them; it needs no tokenizer."""
    published = find_published(source)
    stored = {
        "decoder": list_tower(published.decoder),
        "encoder": list_tower(published.encoder),
        "adapter": list_file(published.adapter),
    }
    dtypes = {tensor.dtype for tensor in stored["decoder"]}
    config = read_model_config(published, dtypes.pop() if len(dtypes) == 1 else "mixed")
    return Opened(published, config, stored, find_sources(stored, config))


def round_rope(config: ModelConfig) -> ModelConfig:
    """The same model with rotary frequencies rounded to bfloat16, as the original computes them."""
    towers = {name: replace(getattr(config, name), rounded_rope=True) for name in ("encoder", "decoder")}
    return replace(config, **towers)


@contextmanager
def streamed(leaves: Mapping[str, Streamed], label: str) -> Iterator[Params]:
    """The tree of these leaves, to be saved inside this block, with a progress bar over what is read of them."""
    total = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves.values())
    with progress_bar(label, total // 10**6) as show:
        done = 0

        def counted(read: Callable[..., np.ndarray], start: int, stop: int) -> np.ndarray:
            nonlocal done
            block = read(start, stop)
            done += block.nbytes
            show(done // 10**6, "")
            return block

        yield unflatten({path: replace(leaf, read=partial(counted, leaf.read)) for path, leaf in leaves.items()})


def hash_files(tensors: Sequence[FileTensor], source: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file these tensors lie in, by its name in the source."""
    files = sorted({tensor.file for tensor in tensors})
    return {str(file.relative_to(source)): hash_file(file) for file in files}


def hash_file(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}


def dtypes_of(opened: Opened) -> dict[str, Any]:
    """What an export needs to give every tensor back as it was: stored dtypes by key, and which were copies of others."""
    tensors: dict[str, dict[str, str]] = {part: {} for part in opened.stored}
    for source in opened.sources.values():
        for tensor, stored in source.tensors:
            tensors[tensor.part][tensor.key] = stored.dtype
    copies = [copy for copy in COPIES if copy[1] in {one.key for one in opened.stored[copy[0]]} - set(tensors[copy[0]])]
    return {"tensors": tensors, "copies": copies}


def copy_originals(published: Published, directory: Path):
    """Every small file of the source: settings, both tokenizers, chat templates."""
    for origin, name in ((published.decoder, "decoder"), (published.encoder, "encoder"), (published.settings, "")):
        (directory / name).mkdir(parents=True, exist_ok=True)
        for file in origin.iterdir():
            if file.is_file() and file.suffix in SMALL_FILES and not file.name.endswith(".index.json"):
                shutil.copyfile(file, directory / name / file.name)


def read_tokenizer(published: Published, config: ModelConfig) -> Tokenizer | None:
    """The decoder's tokenizer, if it has one, checked to serve the encoder too: the same but for the memory tokens, within
    both tables."""
    if not (published.decoder / "tokenizer.json").exists():
        return None
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
    parser.add_argument("source", help="directory with decoder/, encoder/, adapter/ and model_config.json, or a hub repository")
    parser.add_argument("destination", help="new directory for the checkpoint")
    parser.add_argument("--revision", help="commit, tag or branch of the hub repository (default: main, as it is now)")
    parser.add_argument(
        "--rounded-rope",
        action="store_true",
        help="round rotary frequencies to bfloat16, as the original does when it loads bf16",
    )
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # moving numbers needs no accelerator, and would lock it
    written = from_hf(arguments.source, arguments.destination, arguments.revision, arguments.rounded_rope)
    sys.stdout.write(f"wrote {written.resolve()}\n")


if __name__ == "__main__":
    run(main)
