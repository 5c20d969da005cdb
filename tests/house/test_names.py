"""Variables, parameters and attributes are nouns, not participles and pronouns."""

import ast
from collections.abc import Iterator

import pytest

from launch.bench.code import SourceFile, read_sources
from tests.support.paths import ROOT

BANNED = {"told", "said", "held", "some", "one", "ones", "ours", "theirs", "seen", "begun", "found"}


def names_given(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and name of every variable, parameter and attribute that a file binds."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.lineno, node.name


def banned_names(source: SourceFile) -> list[str]:
    return [
        f"{source.path}:{line}: {name}"
        for line, name in names_given(source.tree)
        if name.strip("_").lower() in BANNED
    ]


def test_names_in_every_kind_of_binding_are_noticed():
    code = (
        "one = 1\n"
        "for said in []: pass\n"
        "def f(told, *, held=0): self.seen = 1\n"
        "class C:\n    ours: int = 0\n"
        "found = [some for some in []]\n"
    )
    lines = banned_names(SourceFile("file.py", code))
    assert len(lines) == 8 and lines[0] == "file.py:1: one"


@pytest.mark.parametrize("folder", ["configs", "convert", "launch", "lclm_jax", "tests"])
def test_no_name_is_a_participle_or_a_pronoun(folder):
    sources = read_sources(ROOT, [folder])
    assert [line for source in sources for line in banned_names(source)] == []
