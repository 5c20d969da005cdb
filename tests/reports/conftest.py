"""Directories of made-up runs, and the pictures of their pages."""

from pathlib import Path

import pytest

from lclm_jax.reports import pages, run
from tests.support.runs import (
    EVENTS,
    FULL_LOG,
    VALIDATION_LOSSES,
    read,
    validation,
    write_lines,
    write_run,
)


@pytest.fixture
def directory(tmp_path) -> Path:
    """A run with a short log and an evaluation."""
    return write_run(tmp_path)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    return read(write_run(tmp_path_factory.mktemp("run")))


@pytest.fixture
def full_run(directory) -> Path:
    """A run with every file that a run may leave behind."""
    write_lines(directory / "log.jsonl", FULL_LOG)
    validations = [validation("adapter", step, loss) for step, loss in VALIDATION_LOSSES]
    write_lines(directory / "validation.jsonl", [*validations, validation("all", 30, 4.5)])
    write_lines(directory / "events.jsonl", EVENTS)
    return directory


@pytest.fixture
def drawn(monkeypatch) -> dict:
    """The figures of the page by their alternative text, as they were drawn."""
    figures = {}
    original = run.picture

    def keep(figure, description, caption=""):
        figures[description] = figure
        return original(figure, description, caption)

    monkeypatch.setattr(run, "picture", keep)
    return figures


@pytest.fixture
def unpainted(monkeypatch):
    """Make figures but do not paint them, which takes most of a page's time."""
    monkeypatch.setattr(pages, "as_data_uri", lambda figure: "data:,")
