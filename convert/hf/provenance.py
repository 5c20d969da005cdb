"""What a converted checkpoint keeps of its source: where it is from, hashes, stored dtypes, and the small files as they were."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from convert.hf.files import FileTensor, Published
from convert.hf.mapping import COPIES, Source
from lclm_jax.data.text.tokenizer_files import MORE_TEMPLATES
from lclm_jax.files import checksums

PROVENANCE = "provenance.json"
ORIGINALS = "published"  # the directory of the source's small files
SMALL_FILES = (".json", ".jinja", ".txt")


def hash_files(tensors: Iterable[FileTensor], source: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file these tensors lie in, by its name in the source."""
    files = sorted({tensor.file for tensor in tensors})
    return {str(file.relative_to(source)): hash_file(file) for file in files}


def hash_file(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": checksums.hash_file(file)}


def stored_dtypes(
    stored: Mapping[str, Sequence[FileTensor]], sources: Iterable[Source]
) -> dict[str, Any]:
    """What an export needs to give every tensor back as it was: dtypes by part and key, and which were copies of others."""
    tensors: dict[str, dict[str, str]] = {part: {} for part in stored}
    for source in sources:
        for tensor, found in source.tensors:
            tensors[tensor.part][tensor.key] = found.dtype
    copies = [
        (part, key)
        for part, key in COPIES
        if key in {one.key for one in stored[part]} - set(tensors[part])
    ]
    return {"tensors": tensors, "copies": copies}


def copy_originals(published: Published, directory: Path):
    """Every small file of the source: settings, both tokenizers, chat templates."""
    for origin, name in (
        (published.decoder, "decoder"),
        (published.encoder, "encoder"),
        (published.settings, ""),
    ):
        for file in (*origin.iterdir(), *origin.glob(f"{MORE_TEMPLATES}/*")):
            if (
                file.is_file()
                and file.suffix in SMALL_FILES
                and not file.name.endswith(".index.json")
            ):
                copy = directory / name / file.relative_to(origin)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
