"""Provenance of a converted checkpoint: origin, hashes, stored dtypes, original small files."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from convert.hf.files import FileTensor, Published
from convert.hf.mapping import COPIES, Source
from lclm_jax.data.text.tokenizer_files import NAMED_TEMPLATES_DIRECTORY
from lclm_jax.files import checksums

PROVENANCE = "provenance.json"
ORIGINALS = "published"  # the directory of the source's small files
SMALL_FILES = (".json", ".jinja", ".txt")


def hash_files(tensors: Iterable[FileTensor], source: Path) -> dict[str, dict[str, Any]]:
    """Return size and sha256 of every file of these tensors, by its path in the source."""
    files = sorted({tensor.file for tensor in tensors})
    return {str(file.relative_to(source)): hash_file(file) for file in files}


def hash_file(file: Path) -> dict[str, Any]:
    """Return the size and sha256 of a file."""
    return {"bytes": file.stat().st_size, "sha256": checksums.hash_file(file)}


def stored_dtypes(
    stored: Mapping[str, Sequence[FileTensor]], sources: Iterable[Source]
) -> dict[str, Any]:
    """Return dtypes by part and key, and the tensors that were copies of others.

    With these an export restores every tensor as it was.
    """
    tensors: dict[str, dict[str, str]] = {part: {} for part in stored}
    for source in sources:
        for tensor, file_tensor in source.tensors:
            tensors[tensor.part][tensor.key] = file_tensor.dtype
    copies = [
        (part, key)
        for part, key in COPIES
        if key in {tensor.key for tensor in stored[part]} - set(tensors[part])
    ]
    return {"tensors": tensors, "copies": copies}


def copy_originals(published: Published, directory: Path):
    """Copy every small file of the source: settings, both tokenizers, chat templates."""
    for origin, name in (
        (published.decoder, "decoder"),
        (published.encoder, "encoder"),
        (published.settings, ""),
    ):
        for file in (*origin.iterdir(), *origin.glob(f"{NAMED_TEMPLATES_DIRECTORY}/*")):
            if (
                file.is_file()
                and file.suffix in SMALL_FILES
                and not file.name.endswith(".index.json")
            ):
                copy = directory / name / file.relative_to(origin)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
