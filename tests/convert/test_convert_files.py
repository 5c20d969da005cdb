"""Files of a conversion: sources are not modified and nothing outside them is read."""

import json
import os
import shutil
import struct

import pytest

from convert.from_hf import from_hf
from convert.from_towers import build_from_towers
from convert.hf.files import list_file, list_tower
from convert.hf.mapping import ConversionError
from convert.to_hf import to_hf
from lclm_jax.config import ConfigError
from lclm_jax.files.directories import DirectoryError, new_directory
from tests.support.paths import GOLDEN

BF16 = GOLDEN / "layouts" / "bf16_config457"


@pytest.mark.parametrize("kind", ["itself", "inside", "partial"])
def test_a_source_is_never_removed_or_written_into(published, kind):
    """A source may even have the name that an unfinished conversion had."""
    source = published()
    if kind == "partial":
        source = source.rename(source.with_name("ours.partial"))
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    if kind == "partial":
        from_hf(source, source.with_name("ours"))
    else:
        place = source if kind == "itself" else source / "new" / "ours"
        with pytest.raises(DirectoryError, match="expected a destination apart from the source"):
            from_hf(source, place)
        with pytest.raises(DirectoryError, match="expected a destination apart from the source"):
            build_from_towers(source / "encoder", source, source / "ours")
        with pytest.raises(DirectoryError, match="expected a destination apart from the source"):
            to_hf(source, place)
    after = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    assert after == before and not (source / "new").exists()


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/hostname", "a/b", "a\\b", "..", "", 3, None, ["x"]]
)
def test_an_index_names_files_beside_it_only(tmp_path, name):
    index = {"weight_map": {"model.norm.weight": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    shutil.copy(BF16 / "decoder" / "model.safetensors", tmp_path.parent / "model.safetensors")
    with pytest.raises(
        ConversionError, match="expected names of files beside it in its weight_map"
    ):
        list_tower(tmp_path)


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": "x"}])
def test_an_index_without_a_map_is_named(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ConversionError, match="expected a weight_map from tensors to files"):
        list_tower(tmp_path)


def test_two_tensors_of_one_name_are_refused(tmp_path):
    field = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = f"{{{field},{field}}}".encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(ConversionError, match="holds two tensors of one name: a"):
        list_file(file)


def test_a_shard_is_a_file_or_a_link_to_one(tmp_path):
    """Links are what the cache of a hub holds; a pipe would be waited for."""
    index = {"weight_map": {"model.norm.weight": "one.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (tmp_path / "one.safetensors").symlink_to(BF16 / "decoder" / "model.safetensors")
    assert list_tower(tmp_path)
    (tmp_path / "one.safetensors").unlink()
    os.mkfifo(tmp_path / "one.safetensors")
    with pytest.raises(ConversionError, match="one.safetensors is not a regular file"):
        list_tower(tmp_path)


def test_the_permissions_of_a_read_only_checkpoint_are_not_exported(published, tmp_path):
    converted = from_hf(published(), tmp_path / "ours")
    for path in (converted / "published").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    to_hf(converted, tmp_path / "back")
    assert all(path.stat().st_mode & 0o200 for path in (tmp_path / "back").rglob("*"))


def test_a_conversion_beside_another_is_refused(published, tmp_path):
    with (
        new_directory(tmp_path / "ours"),
        pytest.raises(DirectoryError, match=f"ours is being written by process {os.getpid()} on"),
    ):
        from_hf(published(), tmp_path / "ours")


@pytest.mark.parametrize("name", ["a\\b", "new\nline", "gs://bucket/ours"])
def test_a_checkpoint_that_could_not_be_read_back_is_not_made(published, tmp_path, name):
    with pytest.raises(ConfigError, match="the destination must be a path"):
        from_hf(published(), name if "://" in name else tmp_path / name)
    assert not list(tmp_path.iterdir())
