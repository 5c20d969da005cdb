"""Upkeep of a store: removal, verification, damage, and directories that are none."""

import json

import numpy as np
import pytest

from lclm_jax.config import ConfigError
from lclm_jax.errors import UserError
from lclm_jax.inference.store import Store, StoreError
from tests.support.prose import PROSE

pytestmark = pytest.mark.image

TEXT = PROSE[:3000]
KINDS = ("windows", "texts", "indexes", "documents")


def test_removed_documents_leave_what_others_need(store, model):
    store.add_text("first", TEXT)
    store.add_text("second", TEXT[:1000])
    store.remove("first")
    cleaned = store.gc()
    assert cleaned.removed > 0 and store.verify() == []
    again = Store(store.directory, model)["second"]
    np.testing.assert_allclose(again.vectors, model.compress(TEXT[:1000]).vectors, atol=1e-5)
    assert store.gc().removed == 0
    store.remove("second")
    store.gc()
    assert not [path for kind in KINDS for path in objects_of(store, kind)]


def test_a_store_without_a_model_lists_and_cleans(store):
    store.add_text("prose", TEXT)
    bare = Store(store.directory)
    assert [entry.name for entry in bare.ls()] == ["prose"] and bare.verify() == []
    with pytest.raises(StoreError, match="expected a store with a model"):
        bare.get("prose")
    bare.remove("prose")
    assert bare.gc().needed == 0


def objects_of(store, kind):
    return sorted(path for path in (store.directory / kind).rglob("*") if path.is_file())


def test_a_damaged_entry_hides_no_other_document(store, caplog):
    store.add_text("first", TEXT[:300])
    store.add_text("second", TEXT[:400])
    file = next(f for f in objects_of(store, "documents") if b'"name": "first"' in f.read_bytes())
    file.write_bytes(file.read_bytes()[:-9])
    assert [entry.name for entry in store.ls()] == ["second"]
    assert f"{file}: expected the entry of a document" in caplog.text
    assert store["second"].text == TEXT[:400] and list(store.read()) == ["second"]
    for method in (store.gc, lambda: store.get("first")):
        with pytest.raises(StoreError, match="add the document again, or remove this file"):
            method()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["gone", "cut", "changed", "empty"])
def test_damage_is_noticed_and_adding_again_mends_it(store, model, kind, damage):
    expected = store.add_text("prose", TEXT).vectors
    file = objects_of(store, kind)[0]
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        middle = len(content) // 2
        changed = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        file.write_bytes({"cut": content[:middle], "changed": changed, "empty": b""}[damage])
    fresh = Store(store.directory, model)
    lost = kind == "documents" and damage == "gone"
    assert bool(fresh.verify()) != lost
    with pytest.raises(UserError, match="prose|document"):
        latents = fresh.get("prose")
        assert latents.vectors is not None and latents.text and latents.starts
    mended = fresh.add_text("prose", TEXT)
    assert mended.encoded == (kind == "windows")
    np.testing.assert_array_equal(mended.vectors, expected)
    assert fresh.verify() == []


def test_a_directory_that_holds_something_else_is_no_store(tmp_path, model):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(StoreError, match="holds no store; name another directory"):
        Store(tmp_path, model)
    with pytest.raises(StoreError, match=r"launch\.compress makes one"):
        Store(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(ConfigError, match="must be a path"):
        Store("gs://bucket/store", model)


def test_a_place_that_cannot_be_written_is_named(tmp_path, model):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "x", tmp_path / ("x" * 300), "/proc/x"):
        with pytest.raises(UserError, match="cannot open|cannot write|holds no store"):
            Store(place, model)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{}", "is damaged"), ("", "is damaged"), ("[1]", "damaged"), ('{"version": 2}', "got 2")],
)
def test_a_store_of_another_version_is_refused(store, model, content, message):
    (store.directory / "store.json").write_text(content, encoding="utf-8")
    with pytest.raises(StoreError, match=message):
        Store(store.directory, model)


def test_an_entry_is_readable_json(store):
    store.add_text("prose", TEXT)
    (file,) = objects_of(store, "documents")
    assert json.loads(file.read_text(encoding="utf-8"))["entry"]["name"] == "prose"
