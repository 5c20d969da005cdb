"""Starting a run again: on the same data or other ones, beside another process, after a kill.

No step is compiled here: the stage is replaced by one that reads a batch and saves.
"""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lclm_jax.checkpoint.steps import CheckpointError, Checkpoints
from lclm_jax.config import ConfigError, ParameterGroup
from lclm_jax.config.values import override
from lclm_jax.data.shards import MANIFEST
from lclm_jax.files.checksums import CHECKSUMS
from lclm_jax.files.directories import DirectoryError, locked
from lclm_jax.training.loop import train


@pytest.fixture
def batches(monkeypatch) -> list:
    """The batches that stages read, one each; a stage saves its step 2 of 4."""
    read = []

    def run_stage(stage_run, state, hooks):
        read.append(next(stage_run.batches))
        stage_run.save(2, state)
        stage_run.run.checkpoints.wait()
        return state

    monkeypatch.setattr("lclm_jax.training.loop.run_stage", run_stage)
    return read


@pytest.fixture
def config(config, tmp_path, sources):
    """One stage, on data of its own."""
    data = shutil.copytree(sources, tmp_path / "data")
    return override(replace(config, stages=config.stages[:1]), f"data.directory={data}")


@pytest.fixture(scope="module")
def once() -> dict[str, Path]:
    """The run that the tests of this file go on with; each has a copy."""
    return {}


@pytest.fixture
def started(config, batches, once, tmp_path_factory):
    """The config of a run that stopped after step 2 of 4."""
    if "run" not in once:
        train(config)
        once["run"] = shutil.copytree(config.run.directory, tmp_path_factory.mktemp("once") / "run")
    else:
        shutil.copytree(once["run"], config.run.directory)
        batches.append(None)
    return config


def manifest_of(config) -> tuple[Path, dict]:
    file = Path(config.data.directory) / MANIFEST
    return file, json.loads(file.read_text(encoding="utf-8"))


def test_other_data_of_the_same_name_are_refused(started, batches):
    file, manifest = manifest_of(started)
    manifest["sources"]["docs"]["shards"][0]["sha256"] = "0" * 64
    file.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"not those the run was trained on: source docs 50 examples"
    ):
        train(started)
    assert len(batches) == 1


def test_the_same_data_elsewhere_go_on(started, batches, tmp_path):
    shutil.move(started.data.directory, tmp_path / "moved")
    train(override(started, f"data.directory={tmp_path / 'moved'}"))
    assert len(batches) == 2


def test_a_checkpoint_of_an_earlier_version_goes_on(started, batches, monkeypatch):
    """It has no fingerprint of its data."""
    metadata = Checkpoints.metadata
    without = lambda self, step: {  # noqa: E731
        name: value for name, value in metadata(self, step).items() if name != "sources"
    }
    monkeypatch.setattr(Checkpoints, "metadata", without)
    train(started)
    assert len(batches) == 2


def test_settings_that_may_change_go_on(started, batches):
    again = started
    for setting in (
        "data.batch_rows=4",
        "data.packing_lookahead=20",
        "stages.adapter.warmup_steps=0",
    ):
        again = override(again, setting)
    train(again)
    assert len(batches) == 2 and len(batches[1].tokens) == 4


def test_a_refused_config_changes_nothing(started, batches):
    directory = Path(started.run.directory)
    before = (
        (directory / "config.json").read_text(encoding="utf-8"),
        (directory / "events.jsonl").read_text(encoding="utf-8"),
    )
    with pytest.raises(ConfigError, match=r"data\.seed 0 -> 3; set them as they were"):
        train(override(started, "data.seed=3"))
    after = (
        (directory / "config.json").read_text(encoding="utf-8"),
        (directory / "events.jsonl").read_text(encoding="utf-8"),
    )
    assert after == before and len(batches) == 1


def test_checksums_are_made_when_the_run_is_started_again(started, batches, caplog):
    caplog.set_level("INFO", "lclm_jax.training.run")
    listed = Path(started.run.directory) / "checkpoints" / "2" / CHECKSUMS
    before = listed.read_text(encoding="utf-8")
    listed.unlink()
    train(override(started, "stages.adapter.steps=2"))
    assert (
        "checkpoint 2 had no checksums" in caplog.text
        and listed.read_text(encoding="utf-8") == before
    )


def test_a_finished_run_needs_no_data_but_its_tokenizer(started, batches):
    (Path(started.data.directory) / MANIFEST).unlink()
    train(override(started, "stages.adapter.steps=2"))
    assert len(batches) == 1


def test_a_finished_stage_needs_no_moments(started, batches):
    """It may have trained other parameters than its config says now; the next stage begins."""
    frozen = override(started, "stages.adapter.steps=2")
    first = replace(frozen.stages[0], groups=(ParameterGroup(".*", 1e-3),))
    train(replace(frozen, stages=(first, replace(first, name="next", steps=4))))
    assert len(batches) == 2
    with Checkpoints(started.run.directory) as checkpoints:
        assert checkpoints.latest == 4 and checkpoints.metadata(4)["stage"] == "next"


def test_a_second_trainer_is_refused(started, batches):
    with (
        locked(started.run.directory),
        pytest.raises(DirectoryError, match=f"run is being written by process {os.getpid()} on"),
    ):
        train(started)
    assert len(batches) == 1


def test_a_run_that_cannot_save_does_not_begin(config, batches, monkeypatch):
    def refuse(directory):
        raise DirectoryError(f"cannot write to {directory}: Read-only file system")

    monkeypatch.setattr("lclm_jax.checkpoint.steps.check_writable", refuse)
    message = "could not write a checkpoint to .*checkpoints: Read-only file system. There is none"
    with pytest.raises(CheckpointError, match=message):
        train(config)
    assert not batches


@pytest.mark.parametrize("name", ["a\\b", "a\nb", "s3://bucket/run"])
def test_a_directory_that_cannot_hold_a_run_is_refused_before_it_is_made(
    config, batches, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=r"run\.directory must be a path"):
        train(replace(config, run=replace(config.run, directory=name)))
    assert sorted(tmp_path.rglob("*")) == before and not batches


def test_a_run_goes_on_in_a_directory_of_any_name(config, batches, tmp_path):
    name = " lr=[1e-4], a*b?c {x} Zoë 日本 100%20#| "
    moved = replace(config, run=replace(config.run, directory=str(tmp_path / name)))
    train(moved)
    train(moved)
    assert len(batches) == 2


def test_a_directory_of_another_kind_is_not_trained_into(config, batches):
    directory = Path(config.run.directory)
    directory.mkdir()
    (directory / "config.json").write_text('{"model_type": "qwen3"}', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"holds config\.json and no model\.json"):
        train(config)
    assert [path.name for path in directory.iterdir()] == ["config.json"]
    assert (directory / "config.json").read_text(encoding="utf-8") == '{"model_type": "qwen3"}'
