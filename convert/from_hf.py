"""Converts a published checkpoint to one of lclm_jax.

python -m convert.from_hf SOURCE DESTINATION
"""

import logging
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from convert.hf.config import read_model_config
from convert.hf.files import (
    FileTensor,
    Published,
    find_published,
    list_file,
    list_tower,
    write_json,
)
from convert.hf.mapping import ConversionError, Source, find_sources
from convert.hf.provenance import (
    ORIGINALS,
    PROVENANCE,
    SMALL_FILES,
    copy_originals,
    hash_files,
    stored_dtypes,
)
from convert.hf.tokenizer import read_tokenizer
from lclm_jax.checkpoint.model_files import save_streamed
from lclm_jax.checkpoint.streaming import Streamed, keep_memory
from lclm_jax.cli import make_parser, path, run, setting
from lclm_jax.config import ModelConfig
from lclm_jax.config.settings import Directory
from lclm_jax.files.directories import check_path, new_directory
from lclm_jax.model.params import abstract_params, flatten, unflatten
from lclm_jax.progress import progress_bar
from lclm_jax.typing import Params

log = logging.getLogger(__name__)
HUB_FILES = ("*.safetensors", *(f"*{suffix}" for suffix in SMALL_FILES))


@dataclass(frozen=True)
class Opened:
    """A published checkpoint whose headers have been read and checked against its settings."""

    published: Published
    config: ModelConfig
    stored: dict[str, list[FileTensor]]  # by part: decoder, encoder, adapter
    sources: dict[str, Source]  # by path of the parameter


def from_hf(
    source: str | Path,
    destination: str | Path,
    revision: str | None = None,
    rounded_rope: bool = False,
) -> Path:
    """Convert a published checkpoint into one that `lclm_jax.load` reads.

    `source` is a directory or the name of a hub repository; its weights pass through memory a block
    at a time and keep their dtypes. Returns `destination`. Raises ConversionError or
    FileNotFoundError with everything that is wrong, FileExistsError when the destination exists,
    DirectoryError when it cannot be made or another process makes it; nothing is written then.
    """
    check_path(destination, "the destination")
    with new_directory(destination, source) as directory:
        place, commit = fetch(source, revision)
        opened = open_hf(place)
        config = round_rope(opened.config) if rounded_rope else opened.config
        tokenizer = read_tokenizer(opened.published, config)
        with ThreadPoolExecutor(max_workers=1) as thread:
            stored = [tensor for tensors in opened.stored.values() for tensor in tensors]
            hashes = thread.submit(hash_files, stored, opened.published.source)
            with streamed(
                {path: parameter.leaf() for path, parameter in opened.sources.items()}, "writing MB"
            ) as params:
                save_streamed(directory, config, params)
            origin = {"source": str(source), "revision": commit, "files": hashes.result()}
        write_json(
            directory / PROVENANCE, origin | stored_dtypes(opened.stored, opened.sources.values())
        )
        copy_originals(opened.published, directory / ORIGINALS)
        if tokenizer:
            tokenizer.save(directory / "tokenizer")
        else:
            log.warning(
                "%s has no tokenizer: the checkpoint computes but cannot read text until it has "
                "tokenizer/",
                source,
            )
    return Path(destination)


def read_hf(source: str | Path, mesh: Mesh | None = None) -> tuple[ModelConfig, Params]:
    """Return config and float32 parameters of a published checkpoint.

    They are numpy arrays or, given a mesh, sharded over it as they are read.
    """
    opened = open_hf(source)
    leaves = {path: parameter.leaf(np.float32) for path, parameter in opened.sources.items()}
    if mesh is None:
        return opened.config, unflatten(
            {path: leaf.read(0, leaf.shape[0]) for path, leaf in leaves.items()}
        )
    shapes: dict[str, jax.ShapeDtypeStruct] = flatten(abstract_params(opened.config, mesh))
    return opened.config, unflatten(
        {path: leaf.to_array(shapes[path].sharding) for path, leaf in leaves.items()}
    )


def fetch(source: str | Path, revision: str | None) -> tuple[Path, str | None]:
    """Return the directory of a published checkpoint, and its commit if it is from the hub.

    Downloads it if `source` is the name of a hub repository.
    """
    if Path(source).is_dir():
        if revision:
            raise ConversionError(
                f"{source} is a directory and has no revisions, got --revision {revision}; "
                "leave it out"
            )
        return Path(source), None
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise FileNotFoundError(
            f"{source}: no such directory; "
            "expected a checkpoint with decoder/, encoder/ and adapter/"
        )
    import huggingface_hub

    try:
        commit = huggingface_hub.HfApi().model_info(str(source), revision=revision).sha
        return Path(
            huggingface_hub.snapshot_download(
                str(source), revision=commit, allow_patterns=list(HUB_FILES)
            )
        ), commit
    except (
        OSError,
        huggingface_hub.errors.HfHubHTTPError,
        huggingface_hub.errors.HFValidationError,
    ) as error:
        raise FileNotFoundError(
            f"{source}: no such directory, and revision {revision or 'main'} "
            f"could not be downloaded from the hub: {error}"
        ) from error


def open_hf(source: str | Path) -> Opened:
    """Read the settings and headers of a published checkpoint and check them.

    It needs no tokenizer.
    """
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
    """Return the config with rotary frequencies rounded to bfloat16, as the original has them."""
    towers = {
        name: replace(getattr(config, name), rounded_rope=True) for name in ("encoder", "decoder")
    }
    return replace(config, **towers)


@contextmanager
def streamed(leaves: Mapping[str, Streamed], label: str) -> Iterator[Params]:
    """Yield the tree of these leaves; a progress bar counts the bytes that are read of them."""
    total = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves.values())
    with progress_bar(label, total // 10**6) as show:
        done = 0

        def counted(read: Callable[..., np.ndarray], start: int, stop: int) -> np.ndarray:
            nonlocal done
            block = read(start, stop)
            done += block.nbytes
            show(done // 10**6, "")
            return block

        yield unflatten(
            {path: replace(leaf, read=partial(counted, leaf.read)) for path, leaf in leaves.items()}
        )


def main():
    parser = make_parser(__doc__)
    parser.add_argument(
        "source",
        type=setting(Directory),
        help="hub repository, or directory with decoder/, encoder/, adapter/ and model_config.json",
    )
    parser.add_argument("destination", type=path, help="new directory for the checkpoint")
    parser.add_argument(
        "--revision",
        help="commit, tag or branch of the hub repository (default: main, as it is now)",
    )
    parser.add_argument(
        "--rounded-rope",
        action="store_true",
        help="round rotary frequencies to bfloat16, as the original does when it loads bf16",
    )
    arguments = parser.parse_args()
    keep_memory()
    jax.config.update(
        "jax_platforms", "cpu"
    )  # moving numbers needs no accelerator, and would lock it
    written = from_hf(
        arguments.source, arguments.destination, arguments.revision, arguments.rounded_rope
    )
    sys.stdout.write(f"wrote {written.resolve()}\n")


if __name__ == "__main__":
    run(main)
