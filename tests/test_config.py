"""Config: overrides, round trips, and errors that name the knob."""

import dataclasses

import pytest

from configs import lclm_0p6b_4b_16x, scratch_0p6b, tiny
from lclm_jax.config import CompressionConfig, Config, ConfigError
from lclm_jax.config_values import from_dict, override, to_dict


def test_round_trip():
    config = tiny.config()
    assert from_dict(Config, to_dict(config)) == config


@pytest.mark.parametrize(
    ("assignment", "read", "value"),
    [
        ("data.rows=4", lambda c: c.data.rows, 4),
        ("stages.adapter.steps=7", lambda c: c.stages[1].steps, 7),
        ("stages.1.steps=7", lambda c: c.stages[1].steps, 7),
        ("stages.adapter.groups.0.rate=1", lambda c: c.stages[1].groups[0].rate, 1.0),
        ("stages.adapter.groups.0.rate=none", lambda c: c.stages[1].groups[0].rate, None),
        ("data.passage=8,16", lambda c: c.data.passage, (8, 16)),
        ("model.dtype=bfloat16", lambda c: c.model.dtype, "bfloat16"),
        ("model.decoder.tied=false", lambda c: c.model.decoder.tied, False),
        ("run.directory=elsewhere", lambda c: c.run.directory, "elsewhere"),
    ],
)
def test_override(assignment, read, value):
    assert read(override(tiny.config(), assignment)) == value


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("data.row=4", "did you mean data.rows"),
        ("stage.adapter.steps=4", "did you mean stages"),
        ("stages.adaptor.steps=4", "did you mean stages.adapter"),
        ("data.rows=many", "data.rows must be int"),
        ("model.dtype=float8", "must be one of 'float32', 'bfloat16'"),
        ("data.rows", "expected key=value"),
        ("data.passage=1,2,3", "takes 2 values"),
        ("data.rows.more=1", "single value"),
        ("stages.adapter=1", "name one of them"),
    ],
)
def test_bad_override(assignment, message):
    with pytest.raises(ConfigError, match=message):
        override(tiny.config(), assignment)


def test_unknown_key_in_file():
    values = to_dict(tiny.config())
    values["model"]["widht"] = 3
    with pytest.raises(ConfigError, match="unknown setting model.widht"):
        from_dict(Config, values)


def test_window_must_be_a_multiple_of_the_ratio():
    with pytest.raises(ConfigError, match="set compression.window=996"):
        CompressionConfig(ratio=12, window=1000)


def test_published_recipe():
    """Paper, Table 1: rates of adapter, encoder and decoder, decay, warm-up; optimizer and schedule are those of all stages."""
    config = lclm_0p6b_4b_16x.config()
    rates = {stage.name: tuple(group.rate for group in stage.groups) for stage in config.stages}
    assert rates == {
        "adapter": (1e-3, None, None),
        "encoder": (6e-5, 6e-5, None),
        "decoder": (6e-5, 6e-5, 1e-5),
        "sft": (3e-5, 3e-5, 3e-5),
    }
    assert [stage.warmup for stage in config.stages] == [250, 500, 1000, 500]
    assert {tuple(group.decay for group in stage.groups) for stage in config.stages} == {
        (0.01, 0.01, 0.0)
    }
    assert {stage.final_rate for stage in config.stages} == {1e-6}
    optimizer = config.optimizer
    assert (optimizer.beta1, optimizer.beta2, optimizer.eps, optimizer.clip) == (
        0.9,
        0.95,
        1e-8,
        1.0,
    )
    (scratch,) = scratch_0p6b.config().stages
    assert [(group.rate, group.decay) for group in scratch.groups] == [(1e-3, 0.01), (3e-4, 0.1)]
    assert (scratch.steps, scratch.warmup, scratch.final_rate) == (10_000, 500, 3e-5)


def test_published_sizes():
    config = lclm_0p6b_4b_16x.config()
    assert config.model.decoder.vocab == 151672
    assert [stage.steps for stage in config.stages] == [5075, 10151, 23860, 5083]
    assert dataclasses.replace(config.model.compression, ratio=4).latents_per_window == 256
