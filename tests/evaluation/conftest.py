"""Files of published tasks, written as they are published."""

import json

import pytest

from lclm_jax.evaluation.tasks import TASKS, TaskSettings


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
