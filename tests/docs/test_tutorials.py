"""The tutorials run as written: their files and commands, in order."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

COURSE = ["prepare", "train_tiny", "long_runs", "convert", "capacity"]  # each builds on the last
OTHERS = [
    "documents",
    "agent",
    "chat",
    "generate",
    "retrieval",
    "evaluate",
    "tune",
]  # each in a directory of its own
BLOCK = re.compile(r'^```(python|bash)(?: title="([\w.]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def directory_of(tmp_path_factory):
    """`directory_of(name)` is the directory of a tutorial, with what the repository has in it."""
    course = tmp_path_factory.mktemp("course")
    made = dict.fromkeys(COURSE, course)
    made |= {name: tmp_path_factory.mktemp(name) for name in OTHERS}
    for directory in set(made.values()):
        for name in ("configs", "tests"):
            (directory / name).symlink_to(ROOT / name)
    return made.get


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The directory of compiled programs, which all tutorials share."""
    return tmp_path_factory.mktemp("programs")


def run(line, directory, programs):
    program, *arguments = shlex.split(line)
    assert program == "python"
    flags = "--xla_backend_optimization_level=0"  # each program runs a few times only
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    environment["LCLM_JAX_CACHE"] = str(programs)
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        encoding="utf-8",
    )
    assert result.returncode == 0, f"{line}\n{result.stdout}{result.stderr}"
    return result.stdout


@pytest.mark.parametrize("name", [*COURSE, *OTHERS])
def test_a_tutorial_runs(name, directory_of, programs):
    directory = directory_of(name)
    text = (ROOT / "docs" / "tutorials" / f"{name}.md").read_text(encoding="utf-8")
    blocks = BLOCK.findall(text)
    assert any(language == "bash" for language, _, _ in blocks)
    for language, title, content in blocks:
        if language == "python":
            (directory / title).write_text(content, encoding="utf-8")
        else:
            for line in content.replace("\\\n", " ").splitlines():
                run(line, directory, programs)


def test_every_tutorial_is_run():
    names = {path.stem for path in (ROOT / "docs" / "tutorials").glob("*.md")}
    assert names == {*COURSE, *OTHERS}
