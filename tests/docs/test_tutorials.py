"""The tutorials run as written: their files and commands, in order, in one directory."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

# Each builds on the last.
TUTORIALS = ["prepare", "train_tiny", "long_runs", "convert", "capacity", "retrieval"]
BLOCK = re.compile(r'^```(python|bash)(?: title="([\w.]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A directory in which the repository's configs and committed models are found."""
    directory = tmp_path_factory.mktemp("tutorials")
    for name in ("configs", "tests"):
        (directory / name).symlink_to(ROOT / name)
    return directory


def run(line, directory):
    program, *arguments = shlex.split(line)
    assert program == "python"
    flags = "--xla_backend_optimization_level=0"  # each program runs a few times only
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    environment["LCLM_JAX_CACHE"] = str(directory / "programs")
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        encoding="utf-8",
    )
    assert result.returncode == 0, f"{line}\n{result.stdout}{result.stderr}"
    return result.stdout


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_runs(name, workplace):
    text = (ROOT / "docs" / "tutorials" / f"{name}.md").read_text(encoding="utf-8")
    blocks = BLOCK.findall(text)
    assert any(language == "bash" for language, _, _ in blocks)
    for language, title, content in blocks:
        if language == "python":
            (workplace / title).write_text(content, encoding="utf-8")
        else:
            for line in content.splitlines():
                run(line, workplace)


def test_every_tutorial_is_run():
    names = {path.stem for path in (ROOT / "docs" / "tutorials").glob("*.md")}
    assert names == set(TUTORIALS)
