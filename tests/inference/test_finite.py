"""Non-finite latents and parameters, invalid arguments, and unsupported settings of JAX."""

import jax
import numpy as np
import pytest

from lclm_jax.config import ConfigError
from lclm_jax.data.text.tokenizer import TextError
from lclm_jax.distributed.sharding import FLAGS, one_device
from lclm_jax.errors import UserError
from lclm_jax.inference.generation import NotFiniteError
from lclm_jax.inference.language_model import LanguageModel, load
from lclm_jax.inference.latents import Latents, LatentsError
from lclm_jax.inference.sampling import Sampling

TEXT = "Ada likes pears. Ben likes figs."


@pytest.fixture(scope="module")
def broken(model_config, noisy, tokenizer):
    """A model whose adapter makes NaN of everything; its decoder is sound."""
    adapter = jax.tree.map(lambda x: x * np.nan, noisy["adapter"])
    return LanguageModel(model_config, {**noisy, "adapter": adapter}, tokenizer)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_latents_of_an_array_are_finite(bad):
    vectors = np.zeros((3, 32), np.float32)
    vectors[1, 5] = bad
    with pytest.raises(LatentsError, match="1 of 3 latents are NaN or infinite, the first is numb"):
        Latents(vectors, 12)


def test_latents_are_numbers():
    with pytest.raises(LatentsError, match="expected vectors of numbers"):
        Latents(np.array([["a", "b"]]), 2)


def test_latents_that_are_not_finite_are_named_when_they_are_looked_at(broken):
    latents = broken.compress(TEXT)
    with pytest.raises(LatentsError, match="latents are NaN or infinite, the first is number 0"):
        _ = latents.vectors


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_from_nan_is_an_error_and_not_the_first_token(temperature, broken):
    latents = broken.compress(TEXT)
    with pytest.raises(NotFiniteError, match=r"NaN or infinite for prompts \[0\]"):
        broken.generate([latents, "Who?"], 4, Sampling(temperature))
    with pytest.raises(NotFiniteError):
        broken.conversation().ask([latents, "Who?"], 4)


def test_only_the_rows_with_nan_are_named(broken):
    records = [broken.render([{"role": "user", "content": text}]) for text in ("Who?", "When?")]
    latents = broken.compress(TEXT)
    with pytest.raises(NotFiniteError, match=r"for prompts \[1\]"):
        broken.complete_records([records[0], [latents, *records[1]]], 3)
    assert len(broken.complete_records(records, 3)) == 2


def test_nan_that_comes_later_is_seen(model_config, noisy, tokenizer):
    """A token whose embedding is NaN gives NaN only after it was chosen."""
    model = LanguageModel(model_config, noisy, tokenizer)
    tokens = np.asarray([tokenizer.encode(TEXT)])
    first = int(model.tokenizer.encode(TEXT)[-1])
    table = np.array(noisy["decoder"]["table"])
    scores = np.abs(table).sum(axis=1)
    unseen = int(np.argmax(np.where(np.isin(np.arange(len(table)), tokens), 0, scores)))
    assert unseen != first
    table[unseen] = np.nan
    poisoned = {**noisy, "decoder": {**noisy["decoder"], "table": table}}
    with pytest.raises(NotFiniteError):
        LanguageModel(model_config, poisoned, tokenizer).complete(TEXT, max_tokens=4)


@pytest.mark.parametrize("bad", [-1, 1.5, "4", None, True, 2**31])
def test_a_number_of_tokens_is_a_count(bad, model):
    with pytest.raises(ConfigError, match="max_tokens must be an integer, from 0 to"):
        model.complete(TEXT, max_tokens=bad)


@pytest.mark.parametrize("bad", [1.5, "4", None])
def test_a_seed_is_an_integer(bad, model):
    with pytest.raises(ConfigError, match="seed must be an integer"):
        model.complete(TEXT, max_tokens=1, seed=bad)


def test_any_integer_is_a_seed(model):
    for seed in (-1, 2**31, 2**40, 10**30, np.int64(-(2**62))):
        model.complete(TEXT, max_tokens=1, seed=seed)


def test_a_prompt_beyond_the_positions_is_the_users_error(model):
    with pytest.raises(TextError, match=r"take up to 32768 positions, got .* compress more"):
        model.complete(TEXT, max_tokens=32768)


def test_a_ratio_of_zero_is_no_ratio(model):
    with pytest.raises(ConfigError, match="compresses at ratio 4, got ratio=0"):
        model.compress(TEXT, ratio=0)


def test_a_home_that_is_not_there_is_named():
    with pytest.raises(UserError, match="no home directory for ~nobody-has-this-name"):
        load("~nobody-has-this-name/model")


BAD_FLAGS = {
    "jax_enable_x64": True,
    "jax_disable_jit": True,
    "jax_no_tracing": True,
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_transfer_guard_host_to_device": "disallow",
    "jax_transfer_guard_device_to_host": "disallow",
    "jax_transfer_guard_device_to_device": "disallow",
}


@pytest.mark.parametrize("name", FLAGS)
def test_a_setting_of_jax_that_changes_types_is_refused_by_name(name):
    before = getattr(jax.config, name)
    jax.config.update(name, BAD_FLAGS[name])
    try:
        with pytest.raises(ConfigError, match=f"{name} must be .*unset {name.upper()} or"):
            one_device()
    finally:
        jax.config.update(name, before)
    one_device()
