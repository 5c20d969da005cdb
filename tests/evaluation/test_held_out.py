"""What a model is tested on."""

from dataclasses import replace

import pytest

from lclm_jax.config import CompressionConfig
from lclm_jax.evaluation.held_out import _proportion, reconstruction_accuracy
from lclm_jax.inference.language_model import LanguageModel
from tests.support.records import with_noise


def measured(model_config, params, tokenizer, config, sources):
    model = LanguageModel(model_config, params, tokenizer)
    return reconstruction_accuracy(
        model, str(sources), "docs", config.data, (16, 24), 6, lambda items, *_: items
    )


def test_a_model_of_several_ratios_is_tested_as_the_model_of_each(
    model_config, params, tokenizer, config, sources
):
    params = with_noise(params)
    mixed = measured(
        replace(model_config, compression=CompressionConfig(4, 16, ratios=(2, 8))),
        params,
        tokenizer,
        config,
        sources,
    )
    assert list(mixed["ratios"]) == ["2", "4", "8"] and mixed["passages"] == 6
    assert mixed["ratios"]["4"] == mixed["latents"]
    losses = set()
    for ratio, figures in mixed["ratios"].items():
        fixed = replace(model_config, compression=CompressionConfig(int(ratio), 16))
        alone = measured(fixed, params, tokenizer, config, sources)
        assert "ratios" not in alone
        assert figures["accuracy"] == alone["latents"]["accuracy"]
        assert figures["loss"] == pytest.approx(alone["latents"]["loss"], rel=1e-5)
        losses.add(figures["loss"])
    assert len(losses) == 3


def test_a_share_has_the_interval_of_wilson():
    share = _proportion(
        81, 263
    )  # the example of Newcombe, Statistics in Medicine 17 (1998), table I: 0.2553 to 0.3662
    assert (share["low"], share["high"]) == (
        pytest.approx(0.2553, abs=1e-4),
        pytest.approx(0.3662, abs=1e-4),
    )
