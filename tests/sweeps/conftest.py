"""Sweeps, and the end of their processes."""

import os

import pytest

from tests.support.paths import ROOT
from tests.support.sweeps import Sweep


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """`sweep(a="count 1")` is a sweep of one cell."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # as in the other processes
    sweeps = []

    def make(**cells) -> Sweep:
        sweeps.append(Sweep(tmp_path, cells))
        return sweeps[-1]

    yield make
    for process in [process for sweep in sweeps for process in sweep.processes]:
        process.kill()
        process.wait()
