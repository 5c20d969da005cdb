"""Paths, modules and commands that the documents name exist."""

import importlib.util
import re

import pytest

from tests.support.paths import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
HISTORY = {"CHANGELOG.md"}  # names what is gone
FILE = re.compile(
    r"\b(?:lclm_jax|configs|launch|convert|tests|docs)/[\w./-]*\w\.(?:py|md|sh|yaml|sbatch)\b"
)
MODULE = re.compile(r"python -m ((?:launch|convert|tests)[\w.]*)")
MAKE = re.compile(r"(?:^|`)make ([a-z][a-z-]*)", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


@pytest.fixture(params=PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def page(request):
    return request.param


def test_files_and_modules_exist(page):
    text = page.read_text(encoding="utf-8")
    if page.name in HISTORY:
        return
    missing = [name for name in FILE.findall(text) if not (ROOT / name).exists()]
    missing += [name for name in MODULE.findall(text) if importlib.util.find_spec(name) is None]
    assert not missing


def test_make_targets_exist(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    assert set(MAKE.findall(page.read_text(encoding="utf-8"))) <= targets


def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    assert [link for link in LINK.findall(text) if not (page.parent / link).exists()] == []


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150 and len(text.split()) <= 1200
