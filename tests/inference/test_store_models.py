"""Latents of a store and the model that they belong to."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.inference.latents import LatentsError
from lclm_jax.inference.store import Store, StoreError
from lclm_jax.inference.store.identity import find_model_id, hash_array
from lclm_jax.model.params import init_params
from tests.support.prose import PROSE

pytestmark = pytest.mark.image

TEXT = PROSE[:3000]


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
