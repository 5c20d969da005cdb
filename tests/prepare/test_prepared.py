"""Files of prepared data: repaired when incomplete, reported when replaced."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from launch import inspect_data as launch_inspect
from lclm_jax.config import ConfigError, Recipe, Source, Stream
from lclm_jax.config.renamed import RENAMED_SETTINGS
from lclm_jax.data.loading import PreparedSource, read_manifest
from lclm_jax.data.prepare import prepare
from lclm_jax.data.shards import (
    REJECTIONS,
    DamagedError,
    hash_file,
    index_path,
)
from lclm_jax.files.checksums import write_checksums
from lclm_jax.files.directories import DirectoryError, locked
from tests.support.shards import find_shards

RECIPE = Recipe("one", (Source("docs", "text"),), (Stream("interleaved", "docs", 1.0),))


def contents(directory) -> dict[str, str]:
    """The hash of every shard and index, by name."""
    return {path.name: hash_file(path) for path in sorted(directory.glob("docs.*"))}


@pytest.fixture
def prepared(tmp_path, tokenizer):
    """(input, output) of a preparation of two files."""
    for name in "ab":
        rows = [{"text": f"text {name} {i} " * 20} for i in range(60)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text + "{broken\n", encoding="utf-8")
    inputs = {"docs": [f"{tmp_path}/*.jsonl"]}
    prepare(RECIPE, inputs, tmp_path / "out", tokenizer, workers=1)
    return inputs, tmp_path / "out"


def harm_shard(out, outside):
    shard = find_shards(out, "docs", "train")[1]
    shard.write_bytes(shard.read_bytes()[:-100])


def change_shard(out, outside):
    shard = find_shards(out, "docs", "train")[1]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)


def exchange_shards(out, outside):
    first, second = find_shards(out, "docs", "train")
    whole = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(whole)


def remove_index(out, outside):
    index_path(find_shards(out, "docs", "train")[0]).unlink()


def exchange_indexes(out, outside):
    train, held_out = (find_shards(out, "docs", split)[0] for split in ("train", "held"))
    shutil.copy(index_path(held_out), index_path(train))


def break_report(out, outside):
    (out / "units" / "docs-00001.json").write_bytes(b"\xff{")


def empty_report(out, outside):
    (out / "units" / "docs-00001.json").write_text("[]", encoding="utf-8")


def name_outside(out, outside):
    report = out / "units" / "docs-00000.json"
    record = json.loads(report.read_text(encoding="utf-8"))
    record["shards"][0] |= {"file": "../mine", "sha256": hash_file(outside)}
    report.write_text(json.dumps(record), encoding="utf-8")


def remove_rejections(out, outside):
    (out / "units" / "docs-00000.rejections.jsonl").unlink()


def cut_rejections(out, outside):
    (out / "units" / "docs-00000.rejections.jsonl").write_text('{"half', encoding="utf-8")


HARMS = (
    harm_shard,
    change_shard,
    exchange_shards,
    remove_index,
    exchange_indexes,
    break_report,
    empty_report,
    name_outside,
    remove_rejections,
    cut_rejections,
)


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_what_is_not_whole_is_made_anew(prepared, tokenizer, tmp_path, harm):
    inputs, out = prepared
    (tmp_path / "mine").write_text("mine", encoding="utf-8")
    before = contents(out), (out / REJECTIONS).read_text(encoding="utf-8"), read_manifest(out)
    harm(out, tmp_path / "mine")
    prepare(RECIPE, inputs, out, tokenizer, workers=1)
    assert (
        contents(out),
        (out / REJECTIONS).read_text(encoding="utf-8"),
        read_manifest(out),
    ) == before
    assert (tmp_path / "mine").read_text(encoding="utf-8") == "mine"


def test_only_what_preparation_made_is_removed(prepared, tokenizer, tmp_path):
    """A report of a unit that is gone may name any file; another's files may lie anywhere."""
    inputs, out = prepared
    (tmp_path / "mine").write_text("mine", encoding="utf-8")
    (out / "mine").write_text("mine", encoding="utf-8")
    (out / "units" / "mine-00001.json").write_text(
        '{"shards": [{"file": "mine"}]}', encoding="utf-8"
    )
    report = out / "units" / "docs-00001.json"
    record = json.loads(report.read_text(encoding="utf-8"))
    record["shards"] = [{"file": "../mine"}, {"file": "mine"}, {"file": str(tmp_path / "mine")}]
    report.write_text(json.dumps(record), encoding="utf-8")
    (tmp_path / "b.jsonl").unlink()
    prepare(RECIPE, inputs, out, tokenizer, workers=1)
    assert (tmp_path / "mine").exists() and (out / "mine").exists()
    assert (out / "units" / "mine-00001.json").exists() and not report.exists()
    assert len(find_shards(out, "docs", "train")) == 1


@pytest.mark.parametrize("name", ["model.json", "config.json", "tokenizer/tokenizer.json"])
def test_a_directory_of_another_kind_is_not_prepared_into(tmp_path, tokenizer, name):
    """A run's, for instance, whose tokenizer would be written over."""
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('{"text": "words"}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="expected a new directory or one of prepared data"):
        prepare(RECIPE, {"docs": [str(tmp_path / "a.jsonl")]}, out, tokenizer, workers=1)
    assert (out / name).read_text(encoding="utf-8") == "mine" and len(list(out.iterdir())) == 1


def test_two_preparations_do_not_meet_in_one_directory(prepared, tokenizer):
    inputs, out = prepared
    index_path(find_shards(out, "docs", "train")[0]).unlink()
    before = contents(out)
    with (
        locked(out),
        pytest.raises(DirectoryError, match=f"out is being written by process {os.getpid()} on"),
    ):
        prepare(RECIPE, inputs, out, tokenizer, workers=1)
    assert contents(out) == before and read_manifest(out)


def test_finished_data_are_not_written_again(prepared, tokenizer):
    """Any number of runs may begin on them at once, beside one that reads them."""
    inputs, out = prepared
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with locked(out):
        again = prepare(RECIPE, inputs, out, tokenizer, workers=1)
    assert again["sources"] == read_manifest(out)["sources"]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_finished_data_of_a_version_with_other_names_are_not_written_again(prepared, tokenizer):
    inputs, out = prepared
    manifest = read_manifest(out)
    for old, name in RENAMED_SETTINGS["Recipe"].items():
        manifest["recipe"][old] = manifest["recipe"].pop(name)
    (out / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with locked(out):
        prepare(RECIPE, inputs, out, tokenizer, workers=1)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


# --- Data that are not what their manifest says ---


def forget(out: Path, *names: str):
    """Makes a manifest one of an earlier version, which has no sizes and no hashes of indexes."""
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    for source in manifest["sources"].values():
        for entry in source["shards"]:
            for name in names:
                del entry[name]
    (out / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def exchange(first: Path, second: Path):
    whole = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(whole)


@pytest.fixture
def alike(tmp_path, tokenizer):
    """Prepared data: two shards whose first examples are equally long, an earlier manifest."""
    for name in "ab":
        rows = [{"text": f"{name} {i:03}"} for i in range(60)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    prepare(RECIPE, {"docs": [f"{tmp_path}/?.jsonl"]}, tmp_path / "out", tokenizer, workers=1)
    forget(tmp_path / "out", "bytes")
    return tmp_path / "out"


def test_exchanged_shards_are_named_at_the_first_example(alike, tokenizer):
    """Whatever their sizes, and whatever the lengths of their examples."""
    docs = PreparedSource(alike, "docs", "train", tokenizer)
    first, second = docs.shards
    of_first = next(
        entry["examples"]
        for entry in read_manifest(alike)["sources"]["docs"]["shards"]
        if entry["file"] == first.name
    )
    assert docs.table[0].tolist() == docs.table[of_first].tolist(), "lengths alone tell nothing"
    assert docs[0] and docs[of_first]
    exchange(first, second)
    with pytest.raises(DamagedError, match=r"arrayrecord:0 is not the example of its index"):
        PreparedSource(alike, "docs", "train", tokenizer)[0]
    exchange(index_path(first), index_path(second))
    with pytest.raises(DamagedError, match="index.npz is damaged .it is not as it was written"):
        PreparedSource(alike, "docs", "train", tokenizer)


def test_a_shard_of_another_size_and_an_index_of_another_shard_are_named(prepared, tokenizer):
    _, out = prepared
    first, _ = find_shards(out, "docs", "train")
    whole = first.read_bytes()
    first.write_bytes(whole + b"more")
    message = rf"{first.name} cannot be opened: expected \d+ bytes, got"
    with pytest.raises(DamagedError, match=message):
        PreparedSource(out, "docs", "train", tokenizer)
    first.write_bytes(whole)
    exchange_indexes(out, None)
    forget(out, "index_sha256")
    with pytest.raises(DamagedError, match="is the index of another shard: expected"):
        PreparedSource(out, "docs", "train", tokenizer)


def test_an_index_of_an_earlier_version_has_lengths_alone(alike, tokenizer):
    forget(alike, "index_sha256")
    for shard in find_shards(alike, "docs", "train"):
        with np.load(index_path(shard)) as arrays:
            kept = {name: arrays[name] for name in ("starts", "table")}
        np.savez(index_path(shard), **kept)
    docs = PreparedSource(alike, "docs", "train", tokenizer)
    assert docs[0] and docs[len(docs) - 1]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"sources": 3}', '{"sources": {"docs": {"shards": 1}}}']
)
def test_a_manifest_that_is_none_is_named(prepared, text):
    (prepared[1] / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(DamagedError, match=r"manifest\.json is not a manifest"):
        read_manifest(prepared[1])


def test_a_manifest_cannot_name_a_file_outside(prepared):
    manifest = read_manifest(prepared[1])
    manifest["sources"]["docs"]["shards"][0]["file"] = "../a.jsonl"
    (prepared[1] / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(DamagedError, match="not the name of a file in its directory"):
        read_manifest(prepared[1])


def test_the_fingerprint_of_a_source_is_that_of_its_content(prepared, tokenizer, tmp_path):
    inputs, out = prepared
    fingerprint = PreparedSource(out, "docs", "train", tokenizer).fingerprint
    assert fingerprint["shards"] == 2 and 100 < fingerprint["examples"] <= 120
    moved = shutil.move(out, tmp_path / "moved")
    assert PreparedSource(moved, "docs", "train", tokenizer).fingerprint == fingerprint
    prepare(RECIPE, inputs, out, tokenizer, workers=2)
    assert PreparedSource(out, "docs", "train", tokenizer).fingerprint == fingerprint
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"text": "other words " * 40}) + "\n", encoding="utf-8"
    )
    prepare(RECIPE, inputs, out, tokenizer, workers=1)
    assert PreparedSource(out, "docs", "train", tokenizer).fingerprint != fingerprint


def test_verify_names_every_file_that_is_not_as_it_was_written(prepared, command, capsys):
    _, out = prepared
    assert command(launch_inspect, out, "--verify") == 0
    assert "8 files are as they were written" in capsys.readouterr().out
    assert not (out / "inspect.html").exists()
    change_shard(out, None)
    remove_index(out, None)
    assert command(launch_inspect, out, "--verify") == 2
    first, second = find_shards(out, "docs", "train")
    message = capsys.readouterr().err
    assert "2 files in" in message and f"{second.name} is not as it was written" in message
    assert f"{index_path(first).name} is missing" in message


def test_verify_checks_the_steps_of_a_run(tmp_path, command, capsys):
    for step in (1, 2, 3):
        place = tmp_path / "checkpoints" / str(step)
        place.mkdir(parents=True)
        (place / "array").write_text(f"numbers {step}", encoding="utf-8")
        if step < 3:
            write_checksums(place)
    assert command(launch_inspect, tmp_path, "--verify") == 0
    assert "step 3 has no checksums\n2 files are as they were written" in capsys.readouterr().out
    (tmp_path / "checkpoints" / "1" / "array").write_text("numbers 7", encoding="utf-8")
    assert command(launch_inspect, tmp_path, "--verify") == 2
    assert "checkpoints/1/array is not as it was written" in capsys.readouterr().err
    assert command(launch_inspect, tmp_path / "checkpoints" / "1", "--verify") == 2
    assert "holds neither prepared data nor saved steps" in capsys.readouterr().err
