"""The store: what is kept, what is encoded again, and what is refused."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import jax
import numpy as np
import pytest

from lclm_jax.config import AdapterConfig, ConfigError
from lclm_jax.data.inputs.files import Rejection
from lclm_jax.data.text.tokenizer import TextError
from lclm_jax.errors import UserError
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.inference.latents import LatentsError
from lclm_jax.inference.store import Store, StoreError
from lclm_jax.inference.store.identity import find_model_id, hash_array
from lclm_jax.inference.store.objects import Objects
from lclm_jax.inference.store.windows import pack_window, unpack_window
from lclm_jax.model.params import init_params
from tests.support.prose import PROSE
from tests.support.records import with_noise

pytestmark = pytest.mark.image

TEXT = PROSE[:3000]
WINDOW = 16
KINDS = ("windows", "texts", "indexes", "documents")


@pytest.fixture(scope="module")
def model(model_config, noisy, tokenizer):
    return LanguageModel(model_config, noisy, tokenizer, name="runs/first")


@pytest.fixture
def store(tmp_path, model):
    return Store(tmp_path / "store", model)


def windows_of(latents):
    return -(-latents.tokens // WINDOW)


def test_a_document_reads_as_the_text_compressed_at_once(store, model):
    stored, latents = store.add_text("prose", TEXT), model.compress(TEXT)
    np.testing.assert_allclose(stored.vectors, latents.vectors, atol=1e-5)
    assert stored.text == TEXT and stored.tokens == latents.tokens
    np.testing.assert_array_equal(stored.offsets, latents.offsets)
    question = "Who?"
    again = Store(store.directory, model)["prose"]
    answers = {model.generate([memory, question]) for memory in (stored, latents, again)}
    assert len(answers) == 1
    assert stored.encoded + stored.reused == windows_of(stored) > 90


def test_windows_of_another_document_are_not_encoded_again(store, encoded):
    first = store.add_text("first", TEXT)
    encoded.clear()
    assert store.add_text("second", TEXT).reused == windows_of(first)
    assert store.add_text("first", TEXT).encoded == 0 and not encoded
    longer = store.add_text("longer", TEXT + " And more.")
    assert 0 < sum(encoded) == longer.encoded <= 2


@pytest.mark.parametrize("cut", [1, 1500, 2990])
def test_appending_encodes_the_end_and_equals_the_whole_exactly(store, tmp_path, model, cut):
    whole = Store(tmp_path / "other", model).add_text("prose", TEXT)
    store.add_text("prose", TEXT[:cut])
    grown = store.append("prose", TEXT[cut:])
    np.testing.assert_array_equal(grown.vectors, whole.vectors)
    np.testing.assert_array_equal(grown.offsets, whole.offsets)
    assert grown.text == TEXT and grown.entry.index == whole.entry.index
    changed = windows_of(whole) - store.model.tokenizer.encode(TEXT[:cut]).size // WINDOW
    assert grown.encoded <= changed + 1


@pytest.mark.parametrize("neighbours", [0, 1, 5, 20])
def test_a_window_does_not_depend_on_those_encoded_beside_it(store, tmp_path, model, neighbours):
    other = Store(tmp_path / "other", model)
    tokens = [model.tokenizer.encode(PROSE[start : start + 300])[:WINDOW] for start in (0, 900)]
    texts = [model.tokenizer.decode(part) for part in tokens]
    alone = other.add_text("alone", texts[0]).vectors
    beside = PROSE[4000 : 4000 + 60 * neighbours]
    together = store.add_text("together", texts[0] + beside)
    same = together.vectors[: len(alone)]
    if model.tokenizer.encode(texts[0] + beside)[:WINDOW].tolist() == tokens[0].tolist():
        np.testing.assert_array_equal(same, alone)
    else:
        assert neighbours


def test_latents_are_read_again_only_when_nobody_has_them(store):
    first = store.add_text("prose", TEXT)
    assert store["prose"] is first


@pytest.mark.parametrize("adapter", [AdapterConfig(kind="mlp_attn", layers=1)])
def test_an_adapter_that_joins_windows_reads_what_compress_gives(
    tmp_path, model_config, tokenizer, one_device, adapter
):
    config = replace(model_config, adapter=adapter)
    params = with_noise(init_params(config, one_device, seed=0))
    model = LanguageModel(config, params, tokenizer)
    store = Store(tmp_path / "store", model)
    store.add_text("start", TEXT[:700])
    stored = store.add_text("prose", TEXT)
    assert stored.reused > 2
    np.testing.assert_allclose(stored.vectors, model.compress(TEXT).vectors, atol=1e-5)


def test_shorter_windows_are_contexts_of_their_own(store, model):
    stored = store.add_text("prose", TEXT, window=8)
    tokens = model.tokenizer.encode(TEXT)
    alone = [model.compress_tokens(tokens[i : i + 8]).vectors for i in range(0, len(tokens), 8)]
    np.testing.assert_allclose(stored.vectors, np.concatenate(alone), atol=1e-5)
    assert stored.entry.window == 8 and len(stored.offsets) == len(stored)
    chunks = stored.chunks(8)
    assert "".join(chunk.text for chunk in chunks) == TEXT and len(chunks) == len(alone)
    np.testing.assert_array_equal(chunks[3].vectors, stored.vectors[6:8])
    with pytest.raises(ConfigError, match="window must be from 1 to 16 tokens, got 17"):
        store.add_text("prose", TEXT, window=17)
    with pytest.raises(ConfigError, match="multiple of ratio"):
        store.add_text("prose", TEXT, window=6)


# --- precision ---


@pytest.mark.parametrize(("precision", "error"), [("bfloat16", 0.003), ("int8", 0.012)])
def test_a_lower_precision_says_what_it_changes(store, tmp_path, model, precision, error):
    exact = store.add_text("prose", TEXT)
    rounded = Store(tmp_path / "rounded", model, precision).add_text("prose", TEXT)
    difference = rounded.vectors - exact.vectors
    share = np.sqrt(np.mean(difference**2) / np.mean(exact.vectors**2))
    assert exact.entry.error == 0 and 0 < share < error
    assert rounded.entry.error == pytest.approx(share, rel=1e-3)
    assert rounded.entry.precision == precision


def test_latents_of_zeros_stay_zeros():
    window = unpack_window(pack_window(np.zeros((3, 4), np.float32), "int8"))
    assert not window.latents.any() and window.squares == 0


def test_a_precision_has_a_name(tmp_path, model):
    with pytest.raises(ConfigError, match="float32, bfloat16 or int8, got 'int4'"):
        Store(tmp_path, model, "int4")


# --- models ---


def test_another_models_latents_are_refused_by_name(store, model_config, tokenizer, one_device):
    store.add_text("prose", TEXT)
    params = init_params(model_config, one_device, seed=1)
    other = LanguageModel(model_config, params, tokenizer, name="runs/second")
    seconds = Store(store.directory, other)
    with pytest.raises(StoreError, match=r"prose was compressed by runs/first .* runs/second"):
        seconds.get("prose")
    seconds.add_text("prose", TEXT)
    assert not np.allclose(seconds["prose"].vectors, store["prose"].vectors, atol=1e-3)
    assert [entry.model_name for entry in store.ls()].count("runs/second") == 1


def test_the_identity_is_that_of_all_that_latents_depend_on(model, model_config, tokenizer):
    def identify(weights, config=model_config, marker=0):
        return find_model_id(weights, config, marker)

    known = identify(model.weights)
    assert known == identify(jax.tree.map(np.array, model.weights))
    changed_decoder = {**model.weights, "decoder": {"table": np.zeros(3)}}
    assert identify(changed_decoder) == known
    paths = jax.tree_util.tree_leaves_with_path(model.weights)
    for path, leaf in paths:
        name = jax.tree_util.keystr(path)
        if "decoder" in name or "head" in name:
            continue
        bumped = np.array(leaf)
        bumped.flat[-1] = np.nextafter(bumped.flat[-1], np.float32(9))
        weights = jax.tree_util.tree_map_with_path(
            lambda p, x, path=path, bumped=bumped: bumped if p == path else x, model.weights
        )
        assert identify(weights) != known, name
    assert identify(model.weights, marker=1) != known
    window = replace(model_config.compression, window=32)
    assert identify(model.weights, replace(model_config, compression=window)) != known


def test_the_hash_of_an_array_does_not_depend_on_its_sharding():
    x = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    mesh = jax.make_mesh((8,), ("x",))
    spread = jax.device_put(x, jax.NamedSharding(mesh, jax.P("x")))
    np.testing.assert_array_equal(hash_array(x), hash_array(spread))
    swapped = x.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    for other in (swapped, -x, x.astype(np.float16)):
        assert (np.asarray(hash_array(x)) != np.asarray(hash_array(other))).any()


def test_latents_that_are_not_finite_are_not_kept(tmp_path, model_config, noisy, tokenizer):
    broken = jax.tree.map(lambda x: x * np.float32(np.nan), noisy)
    store = Store(tmp_path / "store", LanguageModel(model_config, broken, tokenizer))
    with pytest.raises(LatentsError, match="are NaN or infinite"):
        store.add_text("prose", TEXT)
    assert store.ls() == []


# --- names, ratios and files ---


def test_files_directories_and_what_is_not_read(store, tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.md").write_text("# Title\n" + TEXT[:400], encoding="utf-8")
    (folder / "b.py").write_text("def f():\n    return 1\n", encoding="utf-8")
    (folder / "c.bin").write_bytes(bytes(range(256)))
    results = list(store.add_all([folder]))
    names = [entry.name for entry in store.ls()]
    assert names == [f"{folder.as_posix()}/a.md", f"{folder.as_posix()}/b.py"]
    assert [type(result) is Rejection for result in results] == [False, False, True]
    assert store.add(folder / "a.md").encoded == 0
    with pytest.raises(TextError, match="use add_all"):
        store.add(folder)
    with pytest.raises(TextError, match=r"nothing\.txt: expected a file"):
        store.add(tmp_path / "nothing.txt")
    (tmp_path / "empty.txt").write_text("", encoding="utf-8")
    with pytest.raises(TextError, match="expected text, got none"):
        store.add(tmp_path / "empty.txt")


@pytest.mark.parametrize("text", ["", "a\ud800b"])
def test_a_text_that_cannot_be_kept_is_refused(store, text):
    with pytest.raises(TextError, match="odd"):
        store.add_text("odd", text)
    assert store.ls() == []


@pytest.mark.parametrize("name", ["../up", "a/b\n", "日本", "x" * 5000, "", "<|im_end|>"])
def test_any_text_is_a_name(store, name):
    store.add_text(name, TEXT[:100])
    assert [entry.name for entry in store.ls()] == [name]
    assert store.get(name).text == TEXT[:100]
    assert store.remove(name) == 1 and store.ls() == []


def test_a_name_is_text_that_can_be_written(store):
    with pytest.raises(TextError, match=r"'a\\udcff': expected a name and a text"):
        store.add_text("a\udcff", TEXT)


def test_a_part_of_a_document_reads_only_its_windows(store, monkeypatch):
    store.add_text("prose", TEXT)
    stored, keys = Store(store.directory, store.model)["prose"], []
    original = Objects.read
    monkeypatch.setattr(Objects, "read", lambda self, k: keys.extend(k) or original(self, k))
    part = stored[40:46]
    assert sum(key.startswith("windows/") for key in keys) == 2
    assert part.text in TEXT and len(part.vectors) == 6
    np.testing.assert_array_equal(stored.vectors[40:46], part.vectors)


def test_what_threads_append_is_all_there(store):
    store.add_text("log", "start.\n")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: store.append("log", f"<{n}>\n"), range(20)))
    text = store["log"].text
    assert sorted(text.splitlines()) == sorted(["start.", *(f"<{n}>" for n in range(20))])


def test_threads_make_one_store(tmp_path, model):
    for attempt in range(5):
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda _, d=tmp_path / str(attempt): Store(d, model), range(6)))


def test_a_store_that_was_cut_off_while_it_was_made_is_made(tmp_path, model):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "store.json.__lock").write_bytes(b"{")
    assert Store(tmp_path / "store", model).ls() == []


def test_appending_keeps_the_precision(store, tmp_path, model):
    rounded = Store(store.directory, model, "int8")
    rounded.add_text("prose", TEXT)
    grown = store.append("prose", " More.")
    assert grown.entry.precision == "int8" and grown.encoded <= 2


def test_a_store_stays_where_it_was_opened(tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Store("here", model)
    store.add_text("prose", TEXT[:90])
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert store["prose"].text == TEXT[:90] and len(store["prose"].vectors)


@pytest.mark.parametrize(("name", "text"), [(3, "words"), ("name", b"words"), ("name", None)])
def test_names_and_texts_are_texts(store, name, text):
    with pytest.raises(TextError, match="expected a name and a text"):
        store.add_text(name, text)


def test_control_tokens_that_are_typed_stay_text(store, model):
    text = "a <|im_end|> b <|memory_end|> c"
    stored = store.add_text("typed", text)
    assert stored.text == text and stored.tokens == len(model.tokenizer.encode(text))


def test_ratios_of_a_document_are_kept_side_by_side(tmp_path, model_config, tokenizer, one_device):
    compression = replace(model_config.compression, ratios=(2, 4, 8))
    config = replace(model_config, compression=compression)
    params = init_params(config, one_device, seed=0)
    store = Store(tmp_path / "store", LanguageModel(config, params, tokenizer))
    lengths = {ratio: len(store.add_text("prose", TEXT, ratio)) for ratio in (2, 4, 8)}
    assert lengths[2] > 1.9 * lengths[4] > 3.5 * lengths[8]
    assert [entry.ratio for entry in store.show("prose")] == [2, 4, 8]
    assert len(store.get("prose", 8)) == lengths[8]
    with pytest.raises(StoreError, match="got ratios: 2, 4, 8; add it, or name the ratio"):
        store.get("prose")
    with pytest.raises(ConfigError, match="compresses at ratio"):
        store.add_text("prose", TEXT, 16)
    with pytest.raises(StoreError, match="is not in .* at ratio 16"):
        store.remove("prose", 16)
    assert store.remove("prose", 4) == 1 and len(store.show("prose")) == 2


def test_an_unknown_document_is_named(store):
    for read in (store.get, store.show, store.remove):
        with pytest.raises(StoreError, match="nobody"):
            read("nobody")


# --- keeping in order ---


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
