"""Config: overrides, round trips, and errors that name the knob."""

import dataclasses

import pytest

from configs import lclm_0p6b_4b_16x, tiny
from lclm_jax.config import CompressionConfig, Config, ConfigError, from_dict, override, to_dict


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


def test_published_sizes():
    config = lclm_0p6b_4b_16x.config()
    assert config.model.decoder.vocab == 151672
    assert [stage.steps for stage in config.stages] == [5075, 10151, 23860, 5083]
    assert dataclasses.replace(config.model.compression, ratio=4).latents_per_window == 256
