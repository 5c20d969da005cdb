"""Evaluation on held-out documents: passages, continuations, questions, and their JSON."""

import json
from dataclasses import replace

import pytest

from lclm_jax.config import CompressionConfig, ConfigError
from lclm_jax.evaluation.held_out import EvaluationConfig, Evaluator, Proportion
from lclm_jax.inference.language_model import LanguageModel
from tests.support.records import with_noise


@pytest.fixture
def noisy(params):
    return with_noise(params)


def reconstruct(model_config, params, tokenizer, config):
    evaluator = Evaluator(LanguageModel(model_config, params, tokenizer), config.data)
    return evaluator.reconstruction("docs", (16, 24), 6).to_dict()


def test_a_model_of_several_ratios_scores_as_the_model_of_each(
    model_config, noisy, tokenizer, config
):
    several = replace(model_config, compression=CompressionConfig(4, 16, ratios=(2, 8)))
    mixed = reconstruct(several, noisy, tokenizer, config)
    assert list(mixed["ratios"]) == ["2", "4", "8"] and mixed["passages"] == 6
    assert mixed["ratios"]["4"] == mixed["latents"]
    losses = set()
    for ratio, figures in mixed["ratios"].items():
        fixed = replace(model_config, compression=CompressionConfig(int(ratio), 16))
        alone = reconstruct(fixed, noisy, tokenizer, config)
        assert "ratios" not in alone
        assert figures["accuracy"] == alone["latents"]["accuracy"]
        assert figures["loss"] == pytest.approx(alone["latents"]["loss"], rel=1e-5)
        losses.add(figures["loss"])
    assert len(losses) == 3


def test_the_json_of_an_evaluation(model_config, noisy, tokenizer, config):
    """The names that the report reads."""
    evaluator = Evaluator(LanguageModel(model_config, noisy, tokenizer), config.data)
    settings = EvaluationConfig(("docs",), ((4, 8),), ("docs",), "tasks", 3)
    evaluation = json.loads(json.dumps(evaluator.evaluate(settings).to_dict()))
    assert list(evaluation) == [
        "parameters",
        "ratio",
        "window",
        "reconstruction",
        "continuation",
        "questions",
        "samples",
    ]
    assert evaluation["parameters"].keys() == {"encoder", "adapter", "decoder"}
    (passages,) = evaluation["reconstruction"]
    assert (passages["source"], passages["lengths"]) == ("docs", [4, 8])
    views = {"latents", "text", "nothing"}
    assert passages.keys() == {"source", "lengths", "passages", *views}
    assert passages["latents"].keys() == {"accuracy", "loss"}
    assert passages["latents"]["accuracy"].keys() == {"value", "low", "high", "count"}
    (documents,) = evaluation["continuation"]
    assert documents.keys() == {"source", "documents", *views}
    assert isinstance(documents["text"], float)
    assert evaluation["questions"].keys() == {"questions", *views}
    samples = evaluation["samples"]
    assert samples["reconstruction"][0].keys() == {"source", "passage", "written"}
    assert samples["continuation"][0].keys() == {"source", "opening", "truth", "written"}
    assert samples["questions"][0].keys() == {
        "context",
        "question",
        "answer",
        *(f"from_{view}" for view in views),
    }


def test_passages_without_a_length_are_refused(model_config, noisy, tokenizer, config):
    evaluator = Evaluator(
        LanguageModel(model_config, noisy, tokenizer),
        replace(config.data, reconstruction_length=None),
    )
    with pytest.raises(ConfigError, match="got data.reconstruction_length=None"):
        evaluator.evaluate(EvaluationConfig())


def test_a_share_has_the_interval_of_wilson():
    """The example of Newcombe, Statistics in Medicine 17 (1998), table I: 0.2553 to 0.3662."""
    share = Proportion.of(81, 263)
    assert (share.low, share.high) == (
        pytest.approx(0.2553, abs=1e-4),
        pytest.approx(0.3662, abs=1e-4),
    )
