"""Runs of two short stages on one device, for the tests of training."""

from dataclasses import replace

import pytest

from lclm_jax.training.loop import train


@pytest.fixture
def config(config, monkeypatch, one_device):
    """A run on one device: the second stage at a constant rate, every checkpoint kept."""
    monkeypatch.setattr("lclm_jax.training.run.make_mesh", lambda _: one_device)
    adapter, everything = config.stages
    run = replace(config.run, keep=9)
    return replace(config, stages=(adapter, replace(everything, final_learning_rate=1e-3)), run=run)


@pytest.fixture(scope="module")
def once():
    """Results that take long, shared by the tests of a file, by name."""
    return {}


@pytest.fixture
def finished(config, once):
    """(config, directory) of a run that nobody interrupted."""
    if "run" not in once:
        once["run"] = config, train(config)
    return once["run"]
