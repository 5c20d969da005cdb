"""The store: what is kept, what is encoded again, and what is refused."""

import copy
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pickle import dumps, loads

import numpy as np
import pytest

from lclm_jax.config import AdapterConfig, ConfigError
from lclm_jax.data.inputs.files import Rejection
from lclm_jax.data.text.tokenizer import TextError
from lclm_jax.errors import UserError
from lclm_jax.inference.documents import Document, read_documents
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.inference.latents import Latents
from lclm_jax.inference.store import Store, StoreError
from lclm_jax.inference.store.objects import Objects
from lclm_jax.inference.store.windows import pack_window, unpack_window
from lclm_jax.model.params import init_params
from tests.support.prose import PROSE
from tests.support.records import with_noise

pytestmark = pytest.mark.image

TEXT = PROSE[:3000]
WINDOW = 16


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
    assert store["prose"] is first and first.encoded


@pytest.mark.parametrize("again", [copy.deepcopy, lambda latents: loads(dumps(latents))])
def test_a_copy_or_pickle_of_a_document_needs_no_store(store, again):
    stored = store.add_text("prose", TEXT)
    vectors, offsets = stored.vectors, stored.offsets
    fresh = Store(store.directory, store.model)["prose"]  # has read nothing yet
    copied = again(fresh)
    shutil.rmtree(store.directory)
    assert type(copied) is Latents and (copied.text, copied.tokens) == (TEXT, stored.tokens)
    np.testing.assert_array_equal(copied.vectors, vectors)
    np.testing.assert_array_equal(copied.offsets, offsets)
    assert copied[4:9].text == stored[4:9].text


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


@pytest.fixture
def notes(tmp_path):
    """A directory of small documents, with windows in common and a file that is not read."""
    folder = tmp_path / "notes"
    folder.mkdir()
    texts = [TEXT[:60], TEXT[60:100], TEXT[:60], TEXT[:30] + TEXT[500:600], "Hi."]
    for number, text in enumerate([*texts, *(TEXT[n : n + 50] for n in range(700, 1700, 50))]):
        (folder / f"{number:02}.md").write_text(text, encoding="utf-8")
    (folder / "03.bin").write_bytes(bytes(range(256)))
    return folder


def test_small_documents_share_passes_and_read_as_those_added_alone(
    store, tmp_path, model, notes, encoded
):
    results = list(store.add_all([notes]))
    together, documents = list(encoded), [r for r in results if not isinstance(r, Rejection)]
    assert [type(result) is Rejection for result in results].index(True) == 3
    assert sum(together) == sum(document.encoded for document in documents)
    assert len(together) <= sum(together) // 4 + 3

    other = Store(tmp_path / "other", model)
    for document in documents:
        alone = other.add(document.entry.name)
        np.testing.assert_array_equal(document.vectors, alone.vectors)
        assert (document.encoded, document.reused) == (alone.encoded, alone.reused)
        assert replace(document.entry, added="") == replace(alone.entry, added="")
    assert documents[2].encoded == 0 and documents[2].reused and store.verify() == []
    again = [d for d in store.add_all([notes]) if not isinstance(d, Rejection)]
    assert not any(document.encoded for document in again)


def test_small_documents_may_be_cleaned_up_while_they_are_added(store, notes):
    for result in store.add_all([notes]):
        store.gc()
        if not isinstance(result, Rejection):
            assert len(Store(store.directory, store.model)[result.entry.name].vectors)
    assert store.verify() == []


def test_small_documents_before_an_error_are_added(store, notes, monkeypatch):
    def read(sources):
        yield from islice(read_documents(sources), 2)
        yield Document("odd", "a\ud800b")
        yield Document("never", "words")

    monkeypatch.setattr("lclm_jax.inference.store.store.read_documents", read)
    with pytest.raises(TextError, match="odd"):
        list(store.add_all([notes]))
    assert len(store.ls()) == 2

    def stop(sources):
        yield Document("first", "words")
        raise UserError("a library is missing")

    monkeypatch.setattr("lclm_jax.inference.store.store.read_documents", stop)
    with pytest.raises(UserError, match="library"):
        list(store.add_all([notes]))
    assert len(store.ls()) == 3


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


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        ({"*": 4, "*.py": 2, "*/b.py": 8}, {"a.md": 4, "a.py": 2, "b.py": 8}),
        ({"*.py": 8}, {"a.md": 4, "a.py": 8, "b.py": 8}),  # others have the model's
        ({"*.py": 2, "*": 8}, {"a.md": 8, "a.py": 8, "b.py": 8}),
        (2, {"a.md": 2, "a.py": 2, "b.py": 2}),
        ({}, {"a.md": 4, "a.py": 4, "b.py": 4}),
    ],
)
def test_documents_have_the_ratio_of_their_pattern(
    tmp_path, model_config, noisy, tokenizer, ratio, expected
):
    compression = replace(model_config.compression, ratios=(2, 4, 8))
    config = replace(model_config, compression=compression)
    store = Store(tmp_path / "store", LanguageModel(config, noisy, tokenizer))
    (tmp_path / "src").mkdir()
    for name in expected:
        (tmp_path / "src" / name).write_text(TEXT[:90], encoding="utf-8")
    results = list(store.add_all([tmp_path / "src"], ratio))
    ratios = {result.entry.name.rpartition("/")[2]: result.entry.ratio for result in results}
    assert ratios == expected


def test_ratios_are_checked_before_a_document_is_added(store, tmp_path):
    (tmp_path / "a.md").write_text(TEXT[:90], encoding="utf-8")
    with pytest.raises(ConfigError, match="compresses at ratio 4, got ratio=5"):
        next(store.add_all([tmp_path / "a.md"], {"*": 4, "*.py": 5}))
    assert store.ls() == []


def test_an_unknown_document_is_named(store):
    for read in (store.get, store.show, store.remove):
        with pytest.raises(StoreError, match="nobody"):
            read("nobody")
