"""Config: overrides, round trips, and errors that name the knob."""

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Annotated, get_args, get_origin

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import lclm_0p6b_4b_16x, scratch_0p6b, tiny
from lclm_jax.config import (
    CompressionConfig,
    Config,
    ConfigError,
    MeshConfig,
    OptimizerConfig,
    ParameterGroup,
    RunConfig,
    Stream,
    renamed,
)
from lclm_jax.config.settings import Range, Settings, field_hints
from lclm_jax.config.values import from_dict, override, to_dict, with_current_names
from lclm_jax.evaluation.efficiency import EfficiencySettings
from lclm_jax.evaluation.held_out import EvaluationConfig
from lclm_jax.evaluation.tuning import Grid
from lclm_jax.evaluation.views import View
from lclm_jax.inference.sampling import Sampling
from lclm_jax.sweeps.analysis.scaling_law import Constant, Law, Observation, Term
from lclm_jax.sweeps.workers import Intervals

pytestmark = pytest.mark.newest


def test_round_trip():
    config = tiny.config()
    assert from_dict(Config, to_dict(config)) == config


@pytest.mark.parametrize(
    ("assignment", "read", "value"),
    [
        ("data.batch_rows=4", lambda c: c.data.batch_rows, 4),
        ("stages.adapter.steps=7", lambda c: c.stages[1].steps, 7),
        ("stages.1.steps=7", lambda c: c.stages[1].steps, 7),
        (
            "stages.adapter.groups.0.learning_rate=1",
            lambda c: c.stages[1].groups[0].learning_rate,
            1.0,
        ),
        (
            "stages.adapter.groups.0.learning_rate=none",
            lambda c: c.stages[1].groups[0].learning_rate,
            None,
        ),
        ("data.crop_length=8,16", lambda c: c.data.crop_length, (8, 16)),
        ("model.dtype=bfloat16", lambda c: c.model.dtype, "bfloat16"),
        ("model.decoder.tied=false", lambda c: c.model.decoder.tied, False),
        ("run.directory=elsewhere", lambda c: c.run.directory, "elsewhere"),
        ("run.directory=5", lambda c: c.run.directory, "5"),
        ("run.directory=[a, b]", lambda c: c.run.directory, "[a, b]"),
        ("run.directory=none", lambda c: c.run.directory, "none"),
        ("run.directory=~/runs", lambda c: c.run.directory, str(Path.home() / "runs")),
        ("run.init_from=none", lambda c: c.run.init_from, None),
        ("model.remat=none", lambda c: c.model.remat, "none"),
        ("model.compression.ratios=[8]", lambda c: c.model.compression.ratios, (8,)),
        ("optimizer.clip=none", lambda c: c.optimizer.clip, None),
    ],
)
def test_override(assignment, read, value):
    assert read(override(tiny.config(), assignment)) == value


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("data.row=4", "did you mean data.batch_rows"),
        ("stage.adapter.steps=4", "did you mean stages"),
        ("stages.adaptor.steps=4", "did you mean stages.adapter"),
        (
            "data.batch_rows=many",
            "data.batch_rows must be an integer, from 1 to 2147483647, got 'many'",
        ),
        ("model.dtype=float8", "must be one of 'float32', 'bfloat16'"),
        ("data.batch_rows", "expected key=value"),
        ("data.crop_length=1,2,3", "takes 2 values"),
        ("data.batch_rows.more=1", "single value"),
        ("stages.adapter=1", "name one of them"),
        ("stages.²=1", "unknown setting stages.²"),
        ("stages.=1", "unknown setting stages."),
        ("data.crop_length.0=1", "data.crop_length is a single value"),
        ("model.compression.ratios.0=1", "is a single value"),
        ("run.directory=~nobody-has-this-name/x", "no home directory for ~nobody-has-this-name"),
        ("model.encoder.heads=3", "model.encoder: heads must be a multiple of kv_heads"),
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


REFUSED = {
    "vocab": (0, -1, 1.0, True, "512", None, 2**31, math.nan),
    "rope_theta": (0, -1.0, math.nan, math.inf, "1e6", None, True, 10**400),
    "norm_eps": (0, -1e-6, math.nan, math.inf),
    "max_positions": (0, -5, None),
    "causal": (0, 1, "true", None),
    "initializer_range": (-0.1, math.nan),
    "pooling": ("max", None, 1, True, []),
    "overlap": (-1, 0.5),
    "ratios": ((0,), 4, "4", (2.0,), None),
    "fsdp": (0, -2, None),
    "crop_length": ((0, 4), (8, 4), (4,), (1, 2, 3), "8,16", 8),
    "spare_latents": (-0.1, math.inf),
    "ratio_weights": ((-1.0,), (0.0, 0.0), (math.nan,)),
    "kind": ("prose", None, 3),
    "name": ("", ".", "..", "a/b", "a\\b", "a\nb", " a", "x" * 201, 3, None),
    "pattern": ("(", "*", None, 3),
    "learning_rate": (-1e-3, math.nan, "fast"),
    "share": (-0.5, math.inf, None),
    "steps": (0, -1, 1.5, None),
    "warmup_steps": (-1, None),
    "beta1": (-0.1, 1, 1.5, math.nan),
    "eps": (0, -1e-8),
    "clip": (0, -1, math.inf),
    "directory": ("", None, 3, "a\0b"),
    "save_every": (0, -1, None),
    "keep": (0, None),
    "keep_every": (0, -1),
    "log_every": (0, None),
    "validate_every": (-1, None),
    "step_timeout": (0, -1, math.nan),
    "wandb": ("", 3),
    "micro_batches": (0, -1),
    "seed": (-1, 2**32, 0.5),
    "streams": ((1,), None),
    "stages": ((), None),
}


def config_parts() -> list[Settings]:
    """An instance of every dataclass of settings."""
    config, recipe = tiny.config(), tiny.recipe()
    stage, model = config.stages[0], config.model
    parts = (config, config.data, config.mesh, config.optimizer, config.run, recipe, stage, model)
    small = (model.encoder, model.compression, model.adapter, stage.groups[0], stage.streams[0])
    efficiency = EfficiencySettings((64,), (View("text"),))
    evaluated = (EvaluationConfig(), Sampling(), Grid(), efficiency)
    term, constant = Term("encoder", 0.5, 0.3, (1e6, 2e6)), Constant("ratio", 4.0)
    law = Law(1.0, (term,), (constant,), 0.01)
    swept = (Intervals(), Observation(1e6, 1e6, 1e9, 4.0, 2.0), term, constant, law)
    return [*parts, *small, recipe.sources[0], *evaluated, *swept]


def test_every_dataclass_of_settings_is_examined():
    assert {type(part) for part in config_parts()} == set(Settings.__subclasses__())


@pytest.mark.parametrize("field", REFUSED)
def test_a_value_out_of_range_is_refused_by_name_however_it_comes(field):
    holders = [part for part in config_parts() if field in field_hints(type(part))]
    for part in holders:
        for value in REFUSED[field]:
            if field == "directory" and type(part).__name__ == "StageConfig" and value == "":
                continue  # the data directory itself
            message = rf"{type(part).__name__}\.{field}|ratio_weights must"
            with pytest.raises(ConfigError, match=message):
                dataclasses.replace(part, **{field: value})
            with pytest.raises(ConfigError, match=rf"^there\.{field}|ratio_weights must"):
                from_dict(type(part), {**to_dict(part), field: value}, "there.")


def test_every_number_of_every_setting_has_a_range():
    """A new field of type int or float without bounds is a field nobody checked."""

    def unbounded(hint, ranged=False) -> bool:
        if get_origin(hint) is Annotated:
            kind, *rules = get_args(hint)
            return unbounded(kind, any(isinstance(rule, Range) for rule in rules))
        if hint in (int, float):
            return not ranged
        return any(unbounded(part) for part in get_args(hint) if part is not Ellipsis)

    for part in config_parts():
        hints = field_hints(type(part))
        assert [name for name, hint in hints.items() if unbounded(hint)] == []


def test_numbers_of_numpy_and_lists_become_pythons_own():
    config = CompressionConfig(ratio=np.int64(4), window=np.int32(32), ratios=[8, np.int8(2)])
    assert config == CompressionConfig(4, 32, ratios=(8, 2))
    assert type(config.ratio) is int and json.dumps(to_dict(config))
    assert type(OptimizerConfig(beta1=0).beta1) is float
    assert type(OptimizerConfig(beta1=np.float32(0.5)).beta1) is float
    assert RunConfig(directory=Path("a/b")).directory == "a/b"


def test_changes_are_made_together():
    """Neither of two settings that fit each other need come first."""
    changed = override(tiny.config(), "model.compression.ratio=5", "model.compression.window=35")
    assert changed.model.compression.window == 35
    with pytest.raises(ConfigError, match="model.compression: window must be a multiple of ratio"):
        override(tiny.config(), "model.compression.ratio=5")


def test_only_one_mesh_axis_takes_what_is_left():
    assert MeshConfig(data=-1, fsdp=1).data == -1
    with pytest.raises(ConfigError, match="at most one mesh axis may be -1.*got data, fsdp"):
        MeshConfig(data=-1)


def test_some_stream_has_a_share():
    idle = (Stream("sft", "tasks", 0), Stream("sft", "docs", 0.0))
    with pytest.raises(
        ConfigError, match="shares of stage language's streams must have a positive"
    ):
        dataclasses.replace(tiny.config().stages[0], streams=idle)


def test_ratio_weights_fit_the_ratios():
    with pytest.raises(ConfigError, match=r"one weight for each ratio of \(4,\)"):
        override(tiny.config(), "data.ratio_weights=1,2")


def test_a_missing_setting_is_named():
    values = to_dict(tiny.config())
    del values["model"]["encoder"]["vocab"]
    with pytest.raises(ConfigError, match=r"expected a value of model\.encoder\.vocab, got none"):
        from_dict(Config, values)


FUZZ = settings(max_examples=int(os.environ.get("LCLM_FUZZ", "50")), deadline=None)
NUMBERS = st.integers() | st.floats() | st.booleans() | st.none()
JSON = st.recursive(
    NUMBERS | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def leaves(values, path=()) -> list[tuple]:
    """Keys of every value in nested dicts and lists."""
    items = values.items() if isinstance(values, dict) else enumerate(values)
    below = [leaves(x, (*path, key)) for key, x in items if isinstance(x, (dict, list, tuple))]
    return [(*path, key) for key, _ in items] + [leaf for paths in below for leaf in paths]


@pytest.mark.fuzz
@FUZZ
@given(st.data())
def test_any_json_in_place_of_any_setting_is_a_config_or_a_config_error(data):
    values = json.loads(json.dumps(to_dict(tiny.config())))
    *path, last = data.draw(st.sampled_from(leaves(values)))
    node = values
    for key in path:
        node = node[key]
    node[last] = data.draw(JSON)
    try:
        config = from_dict(Config, values)
    except ConfigError:
        return
    assert from_dict(Config, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.fuzz
@FUZZ
@given(st.data())
def test_any_text_after_set_is_a_config_or_a_config_error(data):
    path = ".".join(map(str, data.draw(st.sampled_from(leaves(to_dict(tiny.config()))))))
    words = st.sampled_from(["none", "1,2", "[", "(1", "1e400", "nan", "²", "~", "0" * 5000])
    value = words | st.text(max_size=8) | NUMBERS.map(str)
    assignment = data.draw(st.text(max_size=12) | value.map(lambda x: f"{path}={x}"))
    try:
        override(tiny.config(), assignment)
    except ConfigError:
        return


def test_window_must_be_a_multiple_of_the_ratio():
    with pytest.raises(ConfigError, match="set compression.window=996"):
        CompressionConfig(ratio=12, window=1000)


def test_published_recipe():
    """Paper, Table 1: rates of adapter, encoder and decoder, decay and warm-up.

    Optimizer and schedule are those of all stages.
    """
    config = lclm_0p6b_4b_16x.config()
    rates = {
        stage.name: tuple(group.learning_rate for group in stage.groups) for stage in config.stages
    }
    assert rates == {
        "adapter": (1e-3, None, None),
        "encoder": (6e-5, 6e-5, None),
        "decoder": (6e-5, 6e-5, 1e-5),
        "sft": (3e-5, 3e-5, 3e-5),
    }
    assert [stage.warmup_steps for stage in config.stages] == [250, 500, 1000, 500]
    assert {tuple(group.weight_decay for group in stage.groups) for stage in config.stages} == {
        (0.01, 0.01, 0.0)
    }
    assert {stage.final_learning_rate for stage in config.stages} == {1e-6}
    optimizer = config.optimizer
    assert (optimizer.beta1, optimizer.beta2, optimizer.eps, optimizer.clip) == (
        0.9,
        0.95,
        1e-8,
        1.0,
    )
    (scratch,) = scratch_0p6b.config().stages
    assert [(group.learning_rate, group.weight_decay) for group in scratch.groups] == [
        (1e-3, 0.01),
        (3e-4, 0.1),
    ]
    assert (scratch.steps, scratch.warmup_steps, scratch.final_learning_rate) == (10_000, 500, 3e-5)


def test_published_sizes():
    config = lclm_0p6b_4b_16x.config()
    assert config.model.decoder.vocab == 151672
    assert [stage.steps for stage in config.stages] == [5075, 10151, 23860, 5083]
    assert dataclasses.replace(config.model.compression, ratio=4).latents_per_window == 256


OLD_NAMES = {
    "data": {"rows": 4, "positions": 64, "windows": 2, "lookahead": 8, "passage": [4, 8]},
    "run": {"begin": "runs/base", "most_skipped": 3, "patience": 60.0},
}


@pytest.fixture
def renamings(caplog):
    """Log records of renamed settings, as a process that has logged none yet writes them."""
    renamed._log_new_name.cache_clear()
    return caplog


def test_a_file_with_old_names_of_settings_reads_and_says_the_new_ones(renamings):
    values = to_dict(tiny.config())
    for group, old in OLD_NAMES.items():
        for name, value in old.items():
            del values[group][renamed.current_name(type(getattr(tiny.config(), group)), name)]
            values[group][name] = value
    stage = values["stages"][1]
    stage["warmup"] = stage.pop("warmup_steps")
    stage["groups"] = [{"pattern": ".*", "rate": 0.5, "decay": 0.25}]
    renamed._log_new_name.cache_clear()
    renamings.clear()
    config = from_dict(Config, values)
    data, run = config.data, config.run
    assert (data.batch_rows, data.row_positions, data.row_windows) == (4, 64, 2)
    assert (data.packing_lookahead, data.crop_length) == (8, (4, 8))
    assert (run.init_from, run.max_skipped_steps, run.step_timeout) == ("runs/base", 3, 60.0)
    assert config.stages[1].warmup_steps == 5
    assert config.stages[1].groups == (ParameterGroup(".*", 0.5, 0.25),)
    assert "setting run.patience is now called run.step_timeout" in renamings.text
    assert "stages.1.groups.0.rate is now called stages.1.groups.0.learning_rate" in renamings.text


def test_old_names_are_read_after_set(renamings):
    changed = override(tiny.config(), "run.patience=5", "stages.adapter.groups.0.rate=0.5")
    assert changed.run.step_timeout == 5
    assert changed.stages[1].groups[0].learning_rate == 0.5
    assert renamings.messages == [
        "setting run.patience is now called run.step_timeout",
        "setting stages.adapter.groups.0.rate is now called stages.adapter.groups.0.learning_rate",
    ]


def test_a_new_name_is_not_logged(renamings):
    override(tiny.config(), "run.step_timeout=5", "data.batch_rows=4")
    assert renamings.messages == []


def test_an_old_and_a_new_name_of_one_setting_are_refused():
    values = to_dict(tiny.config())
    values["run"]["patience"] = 5.0
    with pytest.raises(
        ConfigError, match=r"one value of run\.step_timeout, got two: run\.patience"
    ):
        from_dict(Config, values)


def test_every_renamed_setting_has_a_field_of_its_new_name():
    kinds = {type(part).__name__: type(part) for part in config_parts()}
    for name, fields in renamed.RENAMED_SETTINGS.items():
        today = set(field_hints(kinds[name]))
        assert set(fields.values()) <= today
        assert not set(fields) & today


def test_names_change_in_incomplete_nested_values():
    old = {"data": {"rows": 8}, "stages": [{"name": "a", "groups": [{"rate": None}]}], "more": 1}
    assert with_current_names(Config, old) == {
        "data": {"batch_rows": 8},
        "stages": [{"name": "a", "groups": [{"learning_rate": None}]}],
        "more": 1,
    }
