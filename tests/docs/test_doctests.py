"""Examples in docstrings are run and give what they say."""

import doctest
import importlib

import pytest

from tests.support.paths import ROOT

MODULES = [
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for folder in ("configs", "convert", "launch", "lclm_jax")
    for file in sorted((ROOT / folder).rglob("*.py"))
    if ">>> " in file.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings_hold(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted and not result.failed


def test_there_are_examples():
    assert "lclm_jax.training.optim" in MODULES
