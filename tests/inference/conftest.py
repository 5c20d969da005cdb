"""The small model of these tests, and an empty store of its latents."""

import pytest

from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.inference.store import Store


@pytest.fixture(scope="module")
def model(model_config, noisy, tokenizer) -> LanguageModel:
    return LanguageModel(model_config, noisy, tokenizer, name="runs/first")


@pytest.fixture
def store(tmp_path, model) -> Store:
    """An empty store of the model."""
    return Store(tmp_path / "store", model)
