"""Rooms import each other in one direction only."""

import ast

import pytest

from launch.bench.code import find_arrows, find_circles, read_sources
from tests.support.paths import ROOT

SOURCES = read_sources(ROOT)
# Room and the rooms it must not import. Evaluation may import inference.
FORBIDDEN = {
    "lclm_jax": ["configs", "launch", "convert", "tests"],
    "lclm_jax/model": ["lclm_jax/data"],
    # `import lclm_jax` reads prepared data, and must not load what prepares it.
    "lclm_jax/data/loading": ["lclm_jax/data/prepare", "lclm_jax/data/inputs"],
    "lclm_jax/training": ["lclm_jax/inference", "lclm_jax/evaluation", "lclm_jax/sweeps"],
    "lclm_jax/inference": ["lclm_jax/training", "lclm_jax/evaluation", "lclm_jax/sweeps"],
    "lclm_jax/evaluation": ["lclm_jax/training", "lclm_jax/sweeps"],
    "lclm_jax/scoring": ["lclm_jax/training", "lclm_jax/inference", "lclm_jax/evaluation"],
    "lclm_jax/reports": ["lclm_jax/training"],
    "configs": ["launch", "convert"],
}


def room_of(path: str) -> str:
    """Return the room of a file: a folder of lclm_jax/ or of lclm_jax/data/, or a top folder."""
    parts = path.split("/")
    if path == "launch/starting.py":  # has no imports of ours; every command starts with it
        return path
    if parts[0] != "lclm_jax":
        return parts[0]
    return "/".join(parts[:3] if parts[1] == "data" else parts[:2])


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_does_not_import_what_it_must_not_know(room):
    wrong = [
        f"{start} imports {end}"
        for start, end in sorted(find_arrows(SOURCES))
        if start.startswith(f"{room}/") and any(end.startswith(f"{x}/") for x in FORBIDDEN[room])
    ]
    assert not wrong


def test_there_are_no_circles_between_rooms():
    public = "lclm_jax/__init__.py"  # exports names of every room
    edges = {
        (room_of(start), room_of(end))
        for start, end in find_arrows(SOURCES)
        if room_of(start) != room_of(end) and public not in (start, end)
    }
    assert find_circles(edges) == []


def test_there_are_no_circles_between_the_folders_of_inference():
    folders = {
        (start.rpartition("/")[0], end.rpartition("/")[0])
        for start, end in find_arrows(SOURCES)
        if start.startswith("lclm_jax/inference/") and end.startswith("lclm_jax/inference/")
    }
    assert find_circles((start, end) for start, end in folders if start != end) == []


def test_tests_share_code_through_conftest_and_support_only():
    wrong = [
        f"{source.path} imports {name}"
        for source in read_sources(ROOT, ["tests"])
        for name in source.imported_names()
        if any(part.startswith("test_") for part in name.split(".")[:-1])
    ]
    assert not wrong


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.path)
def test_every_file_says_what_it_is(source):
    assert not source.text.strip() or ast.get_docstring(source.tree)
