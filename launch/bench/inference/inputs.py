"""Inputs of every section: models with random weights, real text, and empty stores."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from launch.bench.accelerator.weights import random_params
from lclm_jax.config import ModelConfig
from lclm_jax.data.synthetic.corpus import standard_library, train_tokenizer
from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.distributed.sharding import one_device
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.inference.sampling import Sampling
from lclm_jax.inference.store import Store

CHARACTERS_PER_ENTRY = 250  # of the text that the tokenizer is trained on
LARGEST_VOCABULARY = 4096
MOST_CHARACTERS_PER_TOKEN = 8  # so many characters certainly hold enough tokens


@cache
def make_model(config: ModelConfig) -> LanguageModel:
    """Return a model with random weights in its dtype, made once per process."""
    tokenizer = make_tokenizer(min(LARGEST_VOCABULARY, config.decoder.vocab))
    return LanguageModel(config, random_params(config, config.dtype, one_device()), tokenizer)


@cache
def make_tokenizer(vocabulary: int) -> Tokenizer:
    """Return a tokenizer trained on the first modules of the standard library."""
    return train_tokenizer([library_text(CHARACTERS_PER_ENTRY * vocabulary)], vocabulary)


def library_text(characters: int) -> str:
    """Return the first characters of the modules of Python's standard library."""
    modules, length = [], 0
    for _, module in standard_library():
        modules.append(module)
        length += len(module)
        if length >= characters:
            break
    return "\n".join(modules)[:characters]


def make_text(tokenizer: Tokenizer, tokens: int) -> str:
    """Return that many tokens of the standard library, or all of it."""
    text, count = library_text(MOST_CHARACTERS_PER_TOKEN * tokens), 0
    for _, offsets in tokenizer.encode_stream_with_offsets(text):
        if count + len(offsets) > tokens:
            return text[: offsets[tokens - count, 0]]
        count += len(offsets)
    return text


def exactly(tokens: int) -> Sampling:
    """Return the settings of answers that do not stop before `tokens` tokens."""
    return Sampling(min_tokens=tokens)


@contextmanager
def new_store(directory: Path, model: LanguageModel) -> Iterator[Store]:
    """Yield an empty store below a directory, and remove it afterwards."""
    stores = directory / "stores"
    stores.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=stores) as path:
        yield Store(path, model)


def question(number: int) -> str:
    """Return one of many questions."""
    return f" What does function number {number} return?"
