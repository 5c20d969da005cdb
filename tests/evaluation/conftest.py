"""A small model of three ratios, and files of published tasks, written as they are published."""

import json
from dataclasses import replace

import pytest

from lclm_jax.config import CompressionConfig
from lclm_jax.evaluation.tasks import TASKS, TaskSettings
from lclm_jax.inference.language_model import LanguageModel


@pytest.fixture(scope="module")
def model(model_config, noisy, tokenizer) -> LanguageModel:
    """A model that compresses at ratio 2, 4 and 8."""
    config = replace(model_config, compression=CompressionConfig(4, 16, ratios=(2, 8)))
    return LanguageModel(config, noisy, tokenizer, name="runs/first")


@pytest.fixture
def write(tmp_path):
    """Return `write(name, value)`: a JSON file, or JSON lines where the name says so."""

    def write_file(name, value):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".jsonl"):
            text = "".join(json.dumps(row) + "\n" for row in value)
        else:
            text = json.dumps(value, indent=1)
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


@pytest.fixture
def load(tmp_path):
    """Return `load(task, **settings)`: the questions of a task from files in `tmp_path`."""

    def load_task(task, **settings):
        return TASKS[task](TaskSettings(tmp_path, **settings))

    return load_task
