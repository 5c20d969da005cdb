"""Sample input: the content of each source, and recipes that run on it."""

import json
from pathlib import Path

import pytest

from configs.recipes import agent, fine_tuning, pretraining
from launch import samples as launch_samples
from launch.bench import data as bench_data
from lclm_jax.config import ConfigError
from lclm_jax.data.prepare.find_inputs import find_inputs
from lclm_jax.data.synthetic import samples

pytestmark = pytest.mark.newest

pytest.importorskip("reasoning_gym")
FUNCTION = '''def function_{0}(x):
    """Adds {0} to a number, and says so in a sentence that is long enough for a passage."""
    return x + {0}
'''
MODULE = (
    '"""'
    + "What this module is for, told at length. " * 4
    + '"""\n\n'
    + "\n\n".join(map(FUNCTION.format, range(4)))
)


@pytest.fixture
def few(monkeypatch):
    """A small standard library and few exercises."""
    modules = [(f"package{i % 2}/module{i}.py", MODULE * (60 if i < 2 else 3)) for i in range(24)]
    monkeypatch.setattr(samples, "standard_library", lambda: iter(modules))
    monkeypatch.setattr(samples, "EXERCISES", 40)
    for cached in (samples._modules, samples._pages):
        cached.cache_clear()
    yield
    for cached in (samples._modules, samples._pages):
        cached.cache_clear()


def test_every_source_of_every_recipe_has_rows_of_its_kind(few, tmp_path):
    inputs = samples.write_samples(tmp_path)
    kinds = {}
    for recipe in (pretraining.recipe(), fine_tuning.recipe(), agent.recipe()):
        kinds |= {source.name: source.kind for source in recipe.sources}
    assert set(kinds) == set(inputs)
    for name, kind in kinds.items():
        rows = [
            json.loads(line)
            for line in (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        assert rows, name
        for row in rows:
            if kind == "chat":
                assert [message["role"] for message in row["messages"]][:2] == ["user", "assistant"]
                assert all(message["content"].strip() for message in row["messages"])
            else:
                assert row["text"].strip()
    again = samples.write_samples(tmp_path / "again")
    assert [Path(path).read_text(encoding="utf-8") for (path,) in again.values()] == [
        Path(path).read_text(encoding="utf-8") for (path,) in inputs.values()
    ]


def test_sources_say_what_they_promise(few):
    (first, *_), latex, reasoning = (
        samples.instructions(),
        list(samples.latex()),
        next(samples.reasoning()),
    )
    asked, described, again, written = (message["content"] for message in first["messages"])
    assert "return x + 0" in asked and '"""' not in asked, "the description is what is asked for"
    assert (
        described.startswith("Adds 0") and f'"""{described}"""' in written and "function_0" in again
    )
    assert all(sheet["text"].count("\\int") in (8, 16) for sheet in latex)
    thought = reasoning["messages"][1]["content"]
    assert thought.startswith("<think>\n") and thought.rpartition("</think>\n\n")[2].strip()
    held_out = {path for path, _ in samples._modules() if samples.split_of(path) == "held"}
    assert not any(f"# {path}\n" in row["text"] for row in samples.long() for path in held_out)


def test_inputs_are_found_by_the_names_of_their_sources(tmp_path):
    recipe = agent.recipe()
    (tmp_path / "corpus").mkdir()
    for name in ("instructions.jsonl", "instructions.parquet", "web.jsonl.zst", "webpage.jsonl"):
        (tmp_path / name).touch()
    inputs = find_inputs(["web=elsewhere/*.txt"], recipe, tmp_path)
    assert inputs["web"] == ["elsewhere/*.txt"]
    assert inputs["corpus"] == [str(tmp_path / "corpus")]
    assert inputs["instructions"] == [
        str(tmp_path / "instructions.jsonl"),
        str(tmp_path / "instructions.parquet"),
    ]
    assert find_inputs([], recipe, tmp_path)["web"] == [str(tmp_path / "web.jsonl.zst")]
    (tmp_path / "web.jsonl.zst").unlink()
    with pytest.raises(ConfigError, match="also reads web; say where they lie by --input web=PATH"):
        find_inputs([], recipe, tmp_path)


def test_the_commands_run_on_samples(few, command, tmp_path, capsys):
    assert command(launch_samples, "--out", tmp_path / "samples") == 0
    assert "instructions.jsonl" in capsys.readouterr().out
    settings = [
        f"--set=data.{key}"
        for key in ("row_positions=16384", "packing_lookahead=60", "batch_rows=8")
    ]
    assert (
        command(bench_data, tmp_path / "bench", "--rows", 1, "--slice", "v5e:4x4", *settings) == 0
    )
    output = capsys.readouterr().out
    assert output.count("prepared at") == 2 and output.count("from 4 hosts") == 2
    assert output.count("every host, all rows") == 2 and output.count("assemble") == 2
    assert command(bench_data, tmp_path / "bench", "--slice", "v5e:4x4x4") == 2
    assert (
        "a slice of v5e has 2 dimensions, such as v5e:4x4, got 'v5e:4x4x4'"
        in capsys.readouterr().err
    )
